"""Bodies around a linear for tests of its rule, and their errors against the oracle in the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

import irx.ops  # noqa: F401 - registers the ops that the texts name
from irx.analysis.reference import evaluate
from irx.backends.regions.linear_region import parse
from irx.backends.regions.lowered import Call, Case, Choices, Lowered, default_schedule
from irx.backends.triton.templates.linear_shape import Problem, problem_of
from irx.ir.blocks import FORMATS
from irx.ir.graph import Graph, Value
from irx.ir.packing import is_writable, pack
from irx.ir.parser import parse as parse_text
from irx.ir.types import is_packed, numpy_dtype
from irx.ir.weights import Weights
from irx.target import find_device
from irx.tuning import Choice
from tests.backends.triton.lowered_run import run_lowered

Maker = Callable[[Problem, Choices], tuple[Call, ...]]


def body(inputs: Sequence[str], nodes: Sequence[str], outputs: Sequence[tuple[str, str]]) -> Graph:
    """A body from its inputs (`x: f32[B, 64]`), statements, and outputs (name and type)."""
    results = ", ".join(f"{name}: {type}" for name, type in outputs)
    lines = [*nodes, "return " + ", ".join(f"%{name}" for name, _ in outputs)]
    head = f"graph @g({', '.join(f'%{i}' for i in inputs)}) -> ({results}) {{"
    text = "\n".join(["program @p {", "size B in [1, 4096]", head, *lines, "}", "}"])
    return parse_text(text).graphs["g"]


def stored(name: str, form: str, n: int, k: int, x: str) -> tuple[str, list[str]]:
    """A weight stored in a format: the name of what a linear of dtype `x` takes, and the statement that makes it."""
    if form == x:
        return name, []
    op = "dequantize" if form in FORMATS else "cast"
    return f"{name}_f", [f'%{name}_f = irx.{op}(%{name}) {{dtype="{x}"}} : {x}[{n}, {k}]']


def plain(form: str, n: int, k: int, x: str = "f32", before: str = "") -> Graph:
    """One linear of a weight in a format; `before` makes %c of %x."""
    weight, nodes = stored("w", form, n, k, x)
    nodes += [before] if before else []
    nodes.append(f"%l = irx.linear(%{'c' if before else 'x'}, %{weight}) : {x}[B, {n}]")
    return body([f"x: {x}[B, {k}]", f"w: {form}[{n}, {k}]"], nodes, [("l", f"{x}[B, {n}]")])


def gated(form: str, n: int, k: int, x: str = "f32") -> Graph:
    """A norm, two products, a bias, a gate and a residual, and one product as a second result."""
    gate, first = stored("g", form, n, k, x)
    up, second = stored("u", form, n, k, x)
    inputs = [f"x: {x}[B, {k}]", f"nw: {x}[{k}]", f"g: {form}[{n}, {k}]", f"u: {form}[{n}, {k}]", f"b: {x}[{n}]"]
    nodes = [
        f"%n = irx.rms_norm(%x, %nw) {{eps=1e-05}} : {x}[B, {k}]",
        *first,
        *second,
        f"%gl = irx.linear(%n, %{gate}, %b) : {x}[B, {n}]",
        f"%ul = irx.linear(%n, %{up}) : {x}[B, {n}]",
        f"%s = irx.swiglu(%gl, %ul) : {x}[B, {n}]",
        f"%y = irx.add(%r, %s) : {x}[B, {n}]",
    ]
    return body([*inputs, f"r: {x}[B, {n}]"], nodes, [("y", f"{x}[B, {n}]"), ("gl", f"{x}[B, {n}]")])


def every_index() -> Graph:
    """A layer norm, and operands of the epilogue of every kind."""
    return body(
        ["x: f32[B, 31]", "nw: f32[31]", "nb: f32[31]", "w: f32[50, 31]", "c: f32[B, 1]", "v: f32[50]", "s: f32[1]"],
        [
            "%n = irx.layer_norm(%x, %nw, %nb) {eps=1e-05} : f32[B, 31]",
            "%l = irx.linear(%n, %w) : f32[B, 50]",
            "%p = irx.mul(%l, %c) : f32[B, 50]",
            "%q = irx.add(%p, %v) : f32[B, 50]",
            "%y = irx.mul(%q, %s) : f32[B, 50]",
        ],
        [("y", "f32[B, 50]")],
    )


def array(value: Value, rows: int) -> np.ndarray:
    """Numbers for an input; packed weights as raw bytes."""
    random = np.random.default_rng(sum(map(ord, value.name)))
    shape = [size if isinstance(size, int) else rows for size in value.shape]
    if not is_packed(value.dtype):
        return random.standard_normal(shape).astype(numpy_dtype(value.dtype))
    if is_writable(value.dtype):
        return pack(random.standard_normal(shape).astype(np.float32), value.dtype)
    return _raw(random, value.dtype, shape)


def _raw(random: np.random.Generator, form: str, shape: Sequence[int]) -> np.ndarray:
    """Random codes under small scales, for formats that are only read."""
    raw = random.integers(0, 256, FORMATS[form].packed_shape(shape), dtype=np.uint8)
    blocks = raw.reshape(-1, FORMATS[form].bytes)
    for at in {"q5_0": [0], "q6_k": [208]}.get(form, [0, 2]):
        halves = random.uniform(0.005, 0.01, len(blocks)).astype(np.float16)
        blocks[:, at : at + 2] = halves.view(np.uint8).reshape(-1, 2)
    return raw


def chosen(device: str = "a100", **knobs: Choice) -> Choices:
    """Default schedules but for some knobs."""
    return Choices(find_device(device), lambda template, bucket, defaults: {**defaults, **knobs})


def default(device: str = "a100") -> Choices:
    """Default schedules."""
    return Choices(find_device(device), default_schedule)


def error(graph: Graph, rows: int, make: Maker, choices: Choices) -> float:
    """The largest difference from the oracle relative to its largest result."""
    region = parse(graph)
    assert region is not None
    lowered = Lowered((Case(make(problem_of(region, choices.device), choices)),))
    arrays = {value.name: array(value, rows) for value in graph.inputs}
    found = run_lowered(lowered, graph, arrays, {"B": rows})
    expected = evaluate(graph, arrays, {"B": rows}, Weights())
    pairs = [
        (np.asarray(found[name], np.float64), right) for name, right in zip(graph.output_names, expected, strict=True)
    ]
    assert all(left.shape == right.shape for left, right in pairs)
    return max(float(np.abs(left - right).max() / np.abs(right).max()) for left, right in pairs)
