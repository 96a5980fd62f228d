"""Products in one kernel, each waiting for the one before, against the oracle; and which regions are chained."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")

import irx
from irx.analysis.random_weights import bind_random_weights
from irx.analysis.reference import evaluate
from irx.api import aim, optimize
from irx.backends.regions.lowered import Choices
from irx.backends.regions.steps import Lowering, Steps
from irx.backends.triton import chains
from irx.backends.triton.backend import _crowded, kernels_of
from irx.backends.triton.chains import ChainedLowering
from irx.backends.triton.kernel import Kernel
from irx.backends.triton.report import step_launches
from irx.backends.triton.rules import RULES
from irx.backends.triton.templates import matvec
from irx.backends.triton.templates.matvec_shape import defaults
from irx.backends.triton.usage import Usage
from irx.ir.program import Program
from irx.ir.types import numpy_dtype
from irx.runtime.tensors import from_numpy, to_numpy
from irx.target import find_device
from irx.tuning import Choice

DEVICE = find_device("a100")


def block(dtype: str, hidden: int, inner: int, form: str = "") -> str:
    """What follows an attention until the next one: out, residual, norm, gated MLP, residual, norm, QKV."""
    shapes = {
        "wo": (hidden, 64),
        "wg": (inner, hidden),
        "wu": (inner, hidden),
        "wd": (hidden, inner),
        "wq": (72, hidden),
    }
    stored = [f"weight ${name} : {form or dtype}[{n}, {k}]" for name, (n, k) in shapes.items()]
    floats = [
        f'%{name} = irx.dequantize(${name}) {{dtype="{dtype}"}} : {dtype}[{n}, {k}]'
        for name, (n, k) in shapes.items()
        if form
    ]
    weight = {name: f"%{name}" if form else f"${name}" for name in shapes}
    row, wide = f"{dtype}[B, {hidden}]", f"{dtype}[B, {inner}]"
    nodes = [
        *floats,
        f"%o = irx.linear(%a, {weight['wo']}) : {row}",
        f"%h = irx.add(%r, %o) : {row}",
        f"%n = irx.rms_norm(%h, $n1) {{eps=1e-05}} : {row}",
        f"%g = irx.linear(%n, {weight['wg']}) : {wide}",
        f"%u = irx.linear(%n, {weight['wu']}) : {wide}",
        f"%s = irx.swiglu(%g, %u) : {wide}",
        f"%d = irx.linear(%s, {weight['wd']}) : {row}",
        f"%y = irx.add(%h, %d) : {row}",
        f"%m = irx.rms_norm(%y, $n2) {{eps=1e-05}} : {row}",
        f"%q = irx.linear(%m, {weight['wq']}) : {dtype}[B, 72]",
    ]
    head = f"graph @forward(%a: {dtype}[B, 64], %r: {row}) -> (y: {row}, q: {dtype}[B, 72]) {{"
    norms = [f"weight ${name} : {dtype}[{hidden}]" for name in ("n1", "n2")]
    lines = ["program @p {", "size B in [1, 64] hint 2", *stored, *norms, head, *nodes, "return %y, %q", "}", "}"]
    return "\n".join(lines)


def program(dtype: str, hidden: int = 40, inner: int = 56, form: str = "") -> Program:
    made = irx.parse(block(dtype, hidden, inner, form))
    bind_random_weights(made.weights)
    return made


@cache
def fused(dtype: str = "f32") -> Program:
    return optimize(program(dtype), aim("triton:cpu"), "default")[0]


def steps(made: Program, refused: Any = (), **knobs: Choice) -> Steps:
    choices = Choices(DEVICE, lambda template, _, defaults: {**defaults, **(knobs if template == "chain" else {})})
    return ChainedLowering(Lowering(RULES, choices), choices, refused).steps(made.graphs["forward"])


def kernels(found: Steps, rows: int) -> list[str]:
    """The names of the kernels for so many rows, in order."""
    cases = [next(c for c in s.lowered.cases if c.most is None or rows <= c.most) for s in found.steps if s.lowered]
    return [call.kernel.name for case in cases for call in case.calls]


def error(made: Program, rows: int) -> float:
    """The largest error of two calls, relative to the largest result."""
    fast, graph = irx.compile(made, target="triton:cpu"), made.graphs["forward"]
    random = np.random.default_rng(0)
    arrays = [random.standard_normal((rows, v.shape[-1])).astype(numpy_dtype(v.dtype)) for v in graph.inputs]
    inputs = {value.name: array for value, array in zip(graph.inputs, arrays, strict=True)}
    expected = evaluate(graph, inputs, {"B": rows}, made.weights)
    errors = []
    for _ in range(2):  # the second call finds the counters as the first has left them
        results = [to_numpy(y).astype(np.float64) for y in fast(*map(from_numpy, arrays))]
        errors += [np.abs(y - e).max() / np.abs(e).max() for y, e in zip(results, expected, strict=True)]
    return float(max(errors))


@pytest.mark.parametrize("phases", [2, 3, 4])
def test_float32_as_the_oracle_has_it(phases: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains, "DEFAULTS", {"phases": phases, "warps": 4})
    assert error(program("f32"), 1) < 1e-5


@pytest.mark.parametrize(
    ("dtype", "hidden", "inner", "form", "rows", "allowed"),
    [
        ("bf16", 40, 56, "", 1, 1e-2),
        ("f16", 37, 53, "", 2, 1e-3),
        ("f32", 31, 1, "", 2, 1e-5),
        ("f32", 64, 96, "q4_0", 1, 1e-4),
        ("f32", 40, 56, "", 20, 1e-5),
    ],
)
def test_other_dtypes_sizes_and_rows(dtype: str, hidden: int, inner: int, form: str, rows: int, allowed: float) -> None:
    assert error(program(dtype, hidden, inner, form), rows) < allowed


def test_sums_that_programs_share_inside_a_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matvec, "defaults", lambda problem, most: {**defaults(problem, most), "span": 2, "split": 2})
    assert error(program("f32"), 1) < 1e-5


def test_pairs_for_few_rows_and_kernels_as_they_were_for_many() -> None:
    found = steps(fused())
    assert kernels(found, 1) == kernels(found, 2) == ["chain", "chain"]
    assert kernels(found, 3) == ["matvec"] * 4
    assert kernels(found, 5) == ["gemm"] * 4
    assert kernels(steps(fused(), phases=1), 1) == ["matvec"] * 4
    assert kernels(steps(fused(), phases=4), 1) == ["chain"]
    assert step_launches(found, DEVICE, {"B": 1}).count == 2


def test_what_else_is_read_of_earlier_phases_is_waited_for() -> None:
    """The residual of the third product is what the first has computed: it is loaded behind the wait, not before."""
    (chain,) = (k for k in kernels_of(steps(fused(), phases=4)).values() if "rows1" in k.note or "up to 1" in k.note)
    second, third = (chain.helpers.split("def phase_")[i] for i in (2, 3))
    assert second.index("tl.load(w0_data") < second.index("while seen") < second.index("tl.load(x +")
    assert third.index("while seen") < third.index("tl.load(e0")


def test_a_chain_that_is_refused_leaves_its_rows_to_kernels_as_they_were() -> None:
    first = next(k for k in kernels_of(steps(fused())).values() if k.name == "chain")
    found = steps(fused(), refused=[first.symbol])
    assert kernels(found, 1) == ["matvec", "matvec", "chain"]
    assert kernels(found, 2) == ["chain", "chain"]


def test_products_that_take_long_are_not_chained() -> None:
    long = optimize(program("bf16", 128, 65536), aim("triton:cpu"), "default")[0]
    assert kernels(steps(long), 1) == ["matvec"] * 4


def test_programs_that_wait_have_to_fit_the_device_at_once() -> None:
    kernel = Kernel("chain", (), "", ("865",), waits=True)
    usage = Usage(registers=64, shared=0, warps=4, stack=0, spills=0, parameters=(), code=0)
    assert "865 programs wait for each other, a100-80gb has room for 864" in str(_crowded(kernel, usage, DEVICE))
    assert _crowded(replace(kernel, grid=("864",)), usage, DEVICE) is None
