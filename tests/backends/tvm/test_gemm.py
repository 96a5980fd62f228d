"""Matrix-matrix kernels against the oracle: formats, precisions of x, row counts, prologues and epilogues."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import irx.ops  # noqa: F401
from irx.analysis.reference import evaluate
from irx.backends.regions.linear_region import parse
from irx.backends.regions.lowered import Choices, single
from irx.backends.tvm.codegen import compile_kernels
from irx.backends.tvm.templates.gemm import gemm_calls
from irx.backends.tvm.templates.gemm_shape import has_matrices, way
from irx.backends.tvm.templates.matvec_shape import layouts_of
from irx.ir.blocks import FORMATS
from irx.ir.dims import symbol
from irx.ir.graph import Builder, Graph, Value
from irx.ir.packing import is_writable, pack
from irx.ir.types import TensorType
from irx.target import Device, find_device
from irx.target.host import host_cpu
from tests.backends.tvm.emulated_amx import emulated
from tests.backends.tvm.lowered_run import choices, run_lowered

AVX2 = "cpu-avx2"
HALVES = {"q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,), "q5_0": (0,), "q5_1": (0, 2)}
"""Bytes where a block that cannot be packed here has its float16 numbers."""


def body(
    n: int,
    k: int,
    form: str,
    *,
    dtype: str = "f32",
    norm: str = "",
    gated: bool = False,
    bias: bool = False,
    residual: bool = False,
    rounding: str = "",
) -> Graph:
    graph = Graph("linear")
    b, rows = Builder(graph), symbol("S")
    x = graph.add_input("x", TensorType((rows, k), dtype))
    if norm:
        x = b(norm, x, graph.add_input("norm", TensorType((k,), dtype)), eps=1e-5)
    if rounding == "bf16":
        x = b("cast", b("cast", x, dtype="bf16"), dtype="f32")
    if rounding == "a8":
        x = b("round_activations", x, bits=8, group=32)
    results = []
    for i in range(1 + gated):
        weight = graph.add_input(f"weight{i}", TensorType((n, k), form))
        if form in FORMATS:
            weight = b("dequantize", weight, dtype=dtype)
        weight = weight if weight.dtype == dtype else b("cast", weight, dtype=dtype)
        vectors = [graph.add_input(f"bias{i}", TensorType((n,), dtype))] if bias else []
        results.append(b("linear", x, weight, *vectors))
    y = b("swiglu", *results) if gated else results[0]
    if residual:
        y = b("add", y, graph.add_input("residual", TensorType((rows, n), dtype)))
    graph.set_outputs({"out": y})
    return graph


def random_arrays(graph: Graph, rows: int) -> dict[str, Any]:
    rng = np.random.default_rng(rows)
    return {value.name: random_array(value, rows, rng) for value in graph.inputs}


def random_array(value: Value, rows: int, rng: np.random.Generator) -> Any:
    shape = tuple(size if isinstance(size, int) else rows for size in value.shape)
    if value.dtype in HALVES:
        raw = rng.integers(0, 256, FORMATS[value.dtype].packed_shape(shape), np.uint8)
        blocks = raw.reshape(-1, FORMATS[value.dtype].bytes)
        for at in HALVES[value.dtype]:
            blocks[:, at : at + 2] = rng.uniform(0.001, 0.01, (len(blocks), 1)).astype(np.float16).view(np.uint8)
        return raw
    array = rng.standard_normal(shape).astype(np.float32)
    if value.dtype in FORMATS and is_writable(value.dtype):
        return pack(array * np.float32(0.05), value.dtype)
    return array.astype({"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}[value.dtype])


def error(
    graph: Graph, rows: int, *, threads: int = 2, device: Device | None = None, knobs: Mapping[str, int] | None = None
) -> float:
    """The largest difference from the oracle, over the largest result."""
    region = parse(graph)
    assert region is not None
    chosen = choices(device)
    if knobs is not None:
        chosen = Choices(chosen.device, lambda template, bucket, defaults: {**defaults, **knobs})
    lowered = single(*gemm_calls(region, layouts_of(region, chosen.device), chosen))
    arrays = random_arrays(graph, rows)
    got = run_lowered(lowered, graph, arrays, threads=threads, device=device)["out"].astype(np.float64)
    want = np.asarray(evaluate(graph, arrays, {}, {})[0]).astype(np.float64)
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("rows", [17, 31, 33, 64, 128, 129])
@pytest.mark.parametrize("threads", [1, 2])
def test_rows(rows: int, threads: int) -> None:
    assert error(body(80, 48, "f32"), rows, threads=threads) < 1e-5
    assert error(body(64, 64, "q4_0"), rows, threads=threads) < 1e-4


@pytest.mark.parametrize(("n", "k"), [(1, 1), (7, 3), (97, 65), (130, 1024)])
@pytest.mark.parametrize("device", ["", AVX2])
def test_sizes(n: int, k: int, device: str) -> None:
    assert error(body(n, k, "f32"), 19, device=find_device(device) if device else None) < 1e-5


@pytest.mark.parametrize("form", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "i8g64", "i4g64", "u4g64", "i8g256"])
@pytest.mark.parametrize("device", ["", AVX2])
def test_packed(form: str, device: str) -> None:
    assert error(body(72, 256, form), 23, device=find_device(device) if device else None) < 1e-4


@pytest.mark.parametrize("form", ["q4_k", "q5_k", "q6_k"])
def test_two_levels(form: str) -> None:
    assert error(body(40, 512, form), 18) < 1e-4


@pytest.mark.parametrize("form", ["q4_0", "q4_1", "q8_0", "q6_k", "i8g128"])
@pytest.mark.parametrize("rounding", ["bf16", "a8"])
def test_rounded_activations(form: str, rounding: str) -> None:
    """Without a norm in front, which could round the other way, nothing but float32 arithmetic may differ."""
    assert error(body(48, 256, form, rounding=rounding), 21) < 1e-5


@pytest.mark.parametrize("rounding", ["bf16", "a8"])
def test_rounded_activations_portable(rounding: str) -> None:
    assert error(body(48, 256, "q4_0", rounding=rounding), 21, device=find_device(AVX2)) < 1e-5


@pytest.mark.parametrize("device", ["", AVX2])
def test_bf16_program(device: str) -> None:
    graph = body(50, 70, "bf16", dtype="bf16", norm="layer_norm", bias=True, residual=True)
    assert error(graph, 35, device=find_device(device) if device else None) < 8e-3
    assert error(body(64, 96, "bf16", dtype="bf16"), 35, device=find_device(device) if device else None) < 8e-3


@pytest.mark.parametrize("form", ["bf16", "f16"])
def test_narrow_weights_of_a_float32_program(form: str) -> None:
    assert error(body(33, 37, form), 20) < 1e-5


def test_gate_of_rounded_activations() -> None:
    """Behind a norm an activation may round the other way than the oracle's."""
    assert error(body(64, 128, "q4_0", rounding="bf16", norm="rms_norm", gated=True), 20) < 2e-3


@pytest.mark.parametrize("form", ["f32", "q4_0", "q4_1"])
def test_norm_and_gate(form: str) -> None:
    assert error(body(96, 64, form, norm="rms_norm", gated=True, residual=True), 40) < (1e-5 if form == "f32" else 1e-4)


@pytest.mark.parametrize(
    "knobs",
    [{"vectors": 4, "block": 6}, {"stripe": 1}, {"unroll": 3, "vectors": 1, "block": 16}, {"prefetch": 0}],
)
@pytest.mark.parametrize("form", ["f32", "q8_0"])
def test_knobs(knobs: dict[str, int], form: str) -> None:
    assert error(body(128, 64, form), 50, knobs=knobs) < (1e-5 if form == "f32" else 1e-4)


@pytest.mark.parametrize("form", ["f32", "f16", "q4_0", "q5_1"])
def test_the_next_weights_are_asked_for(form: str) -> None:
    """In the main loop, where it repeats; a tile narrower than a schedule's vectors is taken whole."""
    for prefetch in (0, 1):
        chosen = Choices(host_cpu(), lambda *asked, p=prefetch: {**asked[2], "prefetch": p, "vectors": 4})
        region = parse(body(32, 128, form))
        assert region is not None
        source = gemm_calls(region, layouts_of(region, host_cpu()), chosen)[-1].kernel.source
        assert ('irx_prefetch"' in source.split("T.alloc_buffer", 1)[1]) == bool(prefetch)


@pytest.mark.parametrize("form", ["q4_0", "q4_1", "q5_1", "q6_k", "q8_0"])
@pytest.mark.parametrize("rows", [17, 29])
def test_codes_as_halves(form: str, rows: int) -> None:
    assert error(body(53, 256, form, rounding="bf16", residual=True), rows) < 1e-5


def test_an_outlier_costs_its_neighbours_little() -> None:
    graph = body(64, 1024, "q8_0")
    region = parse(graph)
    assert region is not None
    arrays = random_arrays(graph, 17)
    arrays["x"][:, 5] *= 1000
    lowered = single(*gemm_calls(region, layouts_of(region, host_cpu()), choices()))
    got = run_lowered(lowered, graph, arrays)["out"]
    want = evaluate(graph, arrays, {}, {})[0]
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()


def test_ways() -> None:
    """The instruction set and the precision asked for decide how x meets the weights."""
    features = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16"})
    full = replace(host_cpu(), features=features)
    for graph, wanted in (
        (body(32, 64, "f32"), "floats"),
        (body(32, 64, "bf16", dtype="bf16"), "pairs"),
        (body(32, 64, "q4_0"), "words"),
        (body(32, 64, "q4_0", rounding="bf16"), "halves"),
        (body(32, 64, "q4_0", rounding="a8"), "bytes"),
    ):
        region = parse(graph)
        assert region is not None
        assert way(region, layouts_of(region, full), full) == wanted
        assert way(region, layouts_of(region, full), find_device(AVX2)) == "floats"


@pytest.mark.parametrize("form", ["f32", "f16", "bf16", "q4_0", "q4_1"])
def test_split(form: str) -> None:
    """Three products of bfloat16 parts stand in for float32; with AVX512-BF16, as they do with AMX."""
    if "avx512_bf16" not in host_cpu().features:
        pytest.skip("no AVX512-BF16 here")
    k = 96 if form.startswith("q") else 75
    graph = body(40, k, form, norm="rms_norm", gated=True)
    assert error(graph, 19, knobs={"split": 1}) < 1e-5


@pytest.fixture
def amx(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """A device with AMX: this one where it has it, else one whose tiles are emulated."""
    host = host_cpu()
    if "avx512_bf16" not in host.features:
        pytest.skip("no AVX512-BF16 here")
    if has_matrices(host):
        yield host
        return
    with emulated(monkeypatch) as tiles:
        yield replace(host, features=host.features | {"amx_tile", "amx_bf16"})
    assert all(tiles.used.values()), tiles.used


@pytest.mark.parametrize("rows", [17, 33, 64])
@pytest.mark.parametrize("k", [32, 75, 224])
@pytest.mark.parametrize(("form", "dtype"), [("f32", "f32"), ("f16", "f32"), ("bf16", "f32"), ("bf16", "bf16")])
def test_amx(amx: Device, form: str, dtype: str, k: int, rows: int) -> None:
    assert error(body(72, k, form, dtype=dtype), rows, device=amx) < (8e-3 if dtype == "bf16" else 1e-5)


@pytest.mark.parametrize("form", ["q4_0", "q4_1", "q5_1", "q6_k", "q8_0", "i4g64"])
@pytest.mark.parametrize("rounding", ["", "bf16"])
def test_amx_of_codes(amx: Device, form: str, rounding: str) -> None:
    assert error(body(130, 256, form, rounding=rounding), 35, device=amx) < 1e-5


@pytest.mark.parametrize(("form", "dtype"), [("bf16", "bf16"), ("f32", "f32"), ("q4_0", "f32")])
def test_amx_behind_a_norm(amx: Device, form: str, dtype: str) -> None:
    assert error(body(64, 96, form, dtype=dtype, norm="rms_norm"), 33, device=amx) < (1e-5 if dtype == "f32" else 8e-3)


def test_amx_of_codes_in_bf16(amx: Device) -> None:
    """x is read where it lies, and both results of a gate come from one kernel."""
    assert error(body(64, 96, "q4_0", dtype="bf16", gated=True, residual=True), 21, device=amx) < 8e-3
    assert error(body(96, 64, "q8_0", norm="rms_norm", gated=True, bias=True), 48, device=amx, threads=1) < 1e-4


@pytest.mark.parametrize(("form", "dtype"), [("bf16", "bf16"), ("f32", "f32"), ("q4_0", "f32")])
def test_amx_compiles(form: str, dtype: str) -> None:
    """Objects for a processor with AMX, whatever this one is."""
    features = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16"})
    device = replace(host_cpu(), features=features | {"amx_tile", "amx_bf16", "amx_int8"})
    region = parse(body(64, 96, form, dtype=dtype, norm="rms_norm"))
    assert region is not None
    calls = gemm_calls(region, layouts_of(region, device), choices(device))
    assert "irx_amx_multiply" in calls[-1].kernel.source
    objects = compile_kernels([call.kernel for call in calls], device)
    assert all(data[:4] == b"\x7fELF" for data in objects.values())
