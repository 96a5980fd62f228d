"""Linear regions of few rows against the oracle: weight formats, norms, roundings, epilogues, odd sizes, no AVX-512."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

import irx.ops  # noqa: F401 - registers the ops that the texts name
from irx.analysis.reference import evaluate
from irx.backends.regions.linear_region import parse
from irx.backends.regions.lowered import Case, Choices, Lowered, Refusal
from irx.backends.tvm.rules.linear import rule
from irx.backends.tvm.templates.matvec import matvec_calls
from irx.ir.blocks import FORMATS
from irx.ir.graph import Graph, Value
from irx.ir.parser import parse as parse_text
from irx.ir.types import is_packed, numpy_dtype
from irx.ir.weights import Weights
from irx.target import Device
from irx.target.device import find_device
from irx.target.host import host_cpu
from tests.backends.tvm.lowered_run import choices, run_lowered

AVX2 = find_device("cpu-avx2")
FLOAT32, PACKED, BF16 = 1e-5, 1e-4, 1e-2


def body(inputs: Sequence[str], nodes: Sequence[str], outputs: Sequence[tuple[str, str]]) -> Graph:
    """A body from its inputs (`x: f32[B, 64]`), statements, and outputs (name and type)."""
    results = ", ".join(f"{name}: {type}" for name, type in outputs)
    lines = [*nodes, "return " + ", ".join(f"%{name}" for name, _ in outputs)]
    head = f"graph @g({', '.join(f'%{i}' for i in inputs)}) -> ({results}) {{"
    text = "\n".join(["program @p {", "size B in [1, 64]", head, *lines, "}", "}"])
    return parse_text(text).graphs["g"]


def plain(form: str, n: int, k: int, x: str = "f32", before: str = "", after: str = "") -> Graph:
    """One linear of a weight in a format; `before` makes %c of %x, `after` makes %y of %l."""
    inputs = [f"x: {x}[B, {k}]", f"w: {form}[{n}, {k}]"]
    op = "dequantize" if form in FORMATS else "cast"
    nodes = [] if form == x else [f'%f = irx.{op}(%w) {{dtype="{x}"}} : {x}[{n}, {k}]']
    nodes += [before] if before else []
    source, weight = "c" if before else "x", "w" if form == x else "f"
    nodes.append(f"%l = irx.linear(%{source}, %{weight}) : {x}[B, {n}]")
    nodes += [after] if after else []
    return body(inputs, nodes, [("y" if after else "l", f"{x}[B, {n}]")])


def array(value: Value, rows: int) -> np.ndarray:
    random = np.random.default_rng(sum(map(ord, value.name)))
    shape = [size if isinstance(size, int) else rows for size in value.shape]
    if not is_packed(value.dtype):
        return random.standard_normal(shape).astype(numpy_dtype(value.dtype))
    raw = random.integers(0, 256, FORMATS[value.dtype].packed_shape(shape), dtype=np.uint8)
    blocks = raw.reshape(-1, FORMATS[value.dtype].bytes)
    for at in _halves(value.dtype):
        blocks[:, at : at + 2] = (
            random.uniform(0.005, 0.01, len(blocks)).astype(np.float16).view(np.uint8).reshape(-1, 2)
        )
    return raw


def _halves(form: str) -> list[int]:
    """The bytes where blocks of a format have float16 numbers."""
    end = FORMATS[form].bytes
    own = {"i": [end - 2], "u": [end - 4, end - 2]}
    ggml = {"q4_0": [0], "q8_0": [0], "q5_0": [0], "q6_k": [208]}
    return own[form[0]] if form[0] in own else ggml.get(form, [0, 2])


def error(
    graph: Graph,
    rows: int,
    *,
    device: Device | None = None,
    threads: int = 2,
    block: int = 0,
    knobs: Mapping[str, int] | None = None,
) -> float:
    """The largest difference from the oracle relative to its largest result, of kernels of `block` rows at once."""
    chosen = choices(device)
    if knobs is not None:
        chosen = Choices(chosen.device, lambda template, bucket, defaults: {**defaults, **knobs})
    block = block or next((b for b in (1, 2, 4) if rows <= b), 8)
    region = parse(graph)
    assert region is not None
    lowered = Lowered((Case(matvec_calls(region, block, chosen)),))
    arrays = {value.name: array(value, rows) for value in graph.inputs}
    found = run_lowered(lowered, graph, arrays, {"B": rows}, threads=threads, device=device)
    expected = evaluate(graph, arrays, {"B": rows}, Weights())
    pairs = [
        (np.asarray(found[name], np.float64), right) for name, right in zip(graph.output_names, expected, strict=True)
    ]
    assert all(left.shape == right.shape for left, right in pairs)
    return max(float(np.abs(left - right).max() / np.abs(right).max()) for left, right in pairs)


@pytest.mark.parametrize("form", ["q8_0", "q4_0", "q4_1", "q5_1", "q4_k", "q6_k", "i8g64", "i4g128", "u4g16"])
def test_packed_weights(form: str) -> None:
    assert error(plain(form, 100, 512), 1) < PACKED


@pytest.mark.parametrize("rows", [2, 3, 8, 13])
def test_packed_weights_for_more_rows(rows: int) -> None:
    assert error(plain("q4_1", 96, 128), rows, threads=1) < PACKED


@pytest.mark.parametrize(
    ("form", "x", "allowed"),
    [("f32", "f32", FLOAT32), ("bf16", "f32", FLOAT32), ("f16", "f32", FLOAT32), ("bf16", "bf16", BF16)],
)
@pytest.mark.parametrize("rows", [1, 5])
def test_float_weights(form: str, x: str, allowed: float, rows: int) -> None:
    assert error(plain(form, 128, 96, x), rows) < allowed


@pytest.mark.parametrize(
    ("n", "k", "form", "x", "allowed"),
    [
        (1, 33, "f32", "f32", FLOAT32),
        (7, 7, "bf16", "f32", FLOAT32),
        (31, 1, "bf16", "bf16", BF16),
        (100, 33, "bf16", "bf16", BF16),
        (100, 1, "f32", "f32", FLOAT32),
    ],
)
def test_odd_sizes(n: int, k: int, form: str, x: str, allowed: float) -> None:
    assert error(plain(form, n, k, x), 3) < allowed


@pytest.mark.parametrize("form", ["f32", "bf16", "q8_0", "q4_k", "q6_k"])
def test_without_avx512(form: str) -> None:
    assert error(plain(form, 50, 256), 2, device=AVX2) < FLOAT32


@pytest.mark.parametrize("form", ["f32", "q8_0", "q4_1"])
@pytest.mark.parametrize("device", [host_cpu(), AVX2], ids=["host", "avx2"])
def test_activations_of_8_bits_are_those_of_the_op(form: str, device: Device) -> None:
    before = "%c = irx.round_activations(%x) {bits=8, group=32} : f32[B, 256]"
    assert error(plain(form, 64, 256, before=before), 2, device=device) < FLOAT32


def test_activations_rounded_to_bf16() -> None:
    before = '%h = irx.cast(%x) {dtype="bf16"} : bf16[B, 96]\n%c = irx.cast(%h) {dtype="f32"} : f32[B, 96]'
    assert error(plain("f32", 64, 96, before=before), 1) < FLOAT32


ROUNDED = '%h = irx.cast(%x) {{dtype="bf16"}} : bf16[B, {0}]\n%c = irx.cast(%h) {{dtype="f32"}} : f32[B, {0}]'


@pytest.mark.parametrize("form", ["q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q6_k", "i4g64", "u4g16", "u4g256"])
@pytest.mark.parametrize("device", [host_cpu(), AVX2], ids=["host", "avx2"])
def test_packed_weights_and_activations_rounded_to_bf16(form: str, device: Device) -> None:
    """Codes are bfloat16 numbers, so nothing but float32 sums may differ."""
    assert error(plain(form, 97, 512, before=ROUNDED.format(512)), 4, device=device) < FLOAT32


@pytest.mark.parametrize(("rows", "n"), [(1, 1), (3, 7), (8, 113), (13, 64)])
@pytest.mark.parametrize(("halves", "allowed"), [(0, PACKED), (1, FLOAT32)])
def test_rows_of_codes_as_halves(rows: int, n: int, halves: int, allowed: float) -> None:
    for form, k in (("q4_1", 96), ("q6_k", 256)):
        assert error(plain(form, n, k, before=ROUNDED.format(k)), rows, knobs={"halves": halves}) < allowed


@pytest.mark.parametrize("vectors", [1, 2, 4])
def test_halves_of_any_width_behind_a_norm(vectors: int) -> None:
    graph = body(
        ["x: bf16[B, 64]", "nw: bf16[64]", "g: q4_0[128, 64]", "u: q4_0[128, 64]"],
        [
            "%n = irx.rms_norm(%x, %nw) {eps=1e-05} : bf16[B, 64]",
            '%gf = irx.dequantize(%g) {dtype="bf16"} : bf16[128, 64]',
            '%uf = irx.dequantize(%u) {dtype="bf16"} : bf16[128, 64]',
            "%gl = irx.linear(%n, %gf) : bf16[B, 128]",
            "%ul = irx.linear(%n, %uf) : bf16[B, 128]",
            "%y = irx.swiglu(%gl, %ul) : bf16[B, 128]",
        ],
        [("y", "bf16[B, 128]")],
    )
    assert error(graph, 8, knobs={"vectors": vectors, "halves": 1}) < BF16


@pytest.mark.parametrize("threads", [1, 2])
def test_norm_two_products_and_a_residual(threads: int) -> None:
    graph = body(
        ["x: f32[B, 96]", "nw: f32[96]", "g: q4_1[40, 96]", "u: q4_1[40, 96]", "b: f32[40]", "r: f32[B, 40]"],
        [
            "%n = irx.rms_norm(%x, %nw) {eps=1e-05} : f32[B, 96]",
            "%gf = irx.dequantize(%g) : f32[40, 96]",
            "%uf = irx.dequantize(%u) : f32[40, 96]",
            "%gl = irx.linear(%n, %gf, %b) : f32[B, 40]",
            "%ul = irx.linear(%n, %uf) : f32[B, 40]",
            "%s = irx.swiglu(%gl, %ul) : f32[B, 40]",
            "%y = irx.add(%r, %s) : f32[B, 40]",
        ],
        [("y", "f32[B, 40]"), ("gl", "f32[B, 40]")],
    )
    assert error(graph, 3, threads=threads) < PACKED


def test_layer_norm_and_operands_of_every_index() -> None:
    graph = body(
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
    assert error(graph, 3) < FLOAT32


def test_the_rule_takes_any_number_of_rows() -> None:
    lowered = rule(plain("f32", 64, 64), choices())
    assert lowered is not None
    assert [case.most for case in lowered.cases] == [1, 2, 4, 16, None]


def test_a_body_without_a_linear_is_not_the_rule_s() -> None:
    graph = body(["x: f32[B, 8]"], ["%y = irx.silu(%x) : f32[B, 8]"], [("y", "f32[B, 8]")])
    assert rule(graph, choices()) is None


def test_what_does_not_fit_is_refused_with_a_reason() -> None:
    graph = plain("f32", 64, 64, after="%y = irx.softmax(%l) {axis=-1} : f32[B, 64]")
    with pytest.raises(Refusal, match="softmax after the product"):
        rule(graph, choices())


def test_knobs_come_from_the_schedule() -> None:
    asked: list[str] = []

    def schedule(template: str, bucket: str, defaults: object) -> dict[str, int | str]:
        asked.append(f"{template} {bucket}")
        return {**dict(defaults), "vectors": 1, "unroll": 2, "prefetch": 1024}  # type: ignore[call-overload]

    region = parse(plain("q4_1", 64, 64))
    assert region is not None
    (call,) = matvec_calls(region, 1, Choices(host_cpu(), schedule))
    assert asked == ["matvec q4_1/f32 64x64 rows1"]
    assert "irx_prefetch" in call.kernel.source


@pytest.mark.parametrize(
    ("form", "rows", "asks"), [("f32", 1, False), ("f32", 2, True), ("q8_0", 1, False), ("q4_0", 1, True)]
)
def test_weights_are_asked_for_ahead_of_their_use(form: str, rows: int, asks: bool) -> None:
    """But for one row of floats or bytes, whose loads follow each other closely enough."""
    region = parse(plain(form, 64, 64))
    assert region is not None
    kernel = matvec_calls(region, rows, choices())[-1].kernel
    before, _ = kernel.source.split("for unit in")
    assert ("irx_prefetch" in kernel.source) == ("irx_prefetch" in before) == asks, "the first ones before all else"
