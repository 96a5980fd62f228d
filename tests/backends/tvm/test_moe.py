"""Mixtures of experts against the oracle: activations, biases, ways of storing, odd sizes, bfloat16, any tokens."""

import ml_dtypes
import numpy as np
import pytest

import irx.ops  # noqa: F401 - registers the ops that the texts name
from irx.analysis.inputs import random_inputs
from irx.analysis.reference import evaluate
from irx.backends.regions.lowered import Refusal
from irx.backends.tvm.layouts.stacked import Stacked
from irx.backends.tvm.layouts.tiles import tiles_for
from irx.backends.tvm.rules.moe import FEW, rule
from irx.ir.graph import Graph
from irx.ir.parser import parse as parse_text
from irx.ir.weights import Weights
from irx.target import Device
from irx.target.device import find_device
from tests.backends.tvm.lowered_run import choices, run_lowered

AVX2 = find_device("cpu-avx2")
LIMITS = {"f32": 1e-5, "bf16": 1e-2}
ROWS = (1, 2, 3, 29)


def body(
    experts: int = 5, hidden: int = 48, width: int = 64, chosen: int = 2, *, attrs: str = "", bias: bool = False,
    dtype: str = "f32", stored: str | None = None, transposed: bool = False,
) -> Graph:  # fmt: skip
    """A body of one op, with weights `stored` in another dtype than that of x where one is given."""
    stored = stored or dtype
    shapes = [[experts, 2 * hidden, width], [experts, width, hidden]]
    if transposed:
        shapes = [[shape[0], shape[2], shape[1]] for shape in shapes]
        attrs = ", ".join(part for part in ("transposed=true", attrs) if part)
    inputs = [f"%x: {dtype}[B, {width}]", f"%i: i64[B, {chosen}]", f"%s: f32[B, {chosen}]"]
    inputs += [f"%g: {stored}{shapes[0]}", f"%d: {stored}{shapes[1]}"]
    inputs += [f"%bg: {dtype}[{experts}, {2 * hidden}]", f"%bd: {dtype}[{experts}, {width}]"] if bias else []
    type, biases = f"{dtype}[B, {width}]", ", %bg, %bd" if bias else ""
    names, lines = ["%g", "%d"], []
    if stored != dtype:
        names = ["%gf", "%df"]
        lines = [
            f'{name}f = irx.cast({name}) {{dtype="{dtype}"}} : {dtype}{s}' for name, s in zip(("%g", "%d"), shapes)
        ]
    lines.append(f"%y = irx.moe(%x, %i, %s, {', '.join(names)}{biases}) {{{attrs}}} : {type}")
    head = f"graph @m({', '.join(inputs)}) -> (y: {type}) {{"
    return parse_text("\n".join(["program @p {", "size B in [1, 64]", head, *lines, "return %y", "}", "}"])).graphs["m"]


def error(graph: Graph, rows: int, threads: int = 2, device: Device | None = None) -> float:
    """The largest difference from the oracle relative to its largest result."""
    lowered = rule(graph, choices(device))
    assert lowered is not None
    arrays = random_inputs(graph, {"B": rows})
    found = np.asarray(
        run_lowered(lowered, graph, arrays, {"B": rows}, threads=threads, device=device)["y"], np.float64
    )
    (expected,) = evaluate(graph, arrays, {"B": rows}, Weights())
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("threads", [1, 2])
def test_any_number_of_tokens(dtype: str, threads: int) -> None:
    graph = body(dtype=dtype)
    assert max(error(graph, rows, threads) for rows in ROWS) < LIMITS[dtype]


@pytest.mark.parametrize("attrs", ['activation="gelu"', 'activation="gelu_tanh"', 'activation="swigluoai", limit=0.5'])
def test_activations(attrs: str) -> None:
    graph = body(attrs=attrs)
    assert max(error(graph, rows) for rows in (1, 7)) < LIMITS["f32"]


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("interleaved", ["true", "false"])
def test_biases_and_turned_weights_of_odd_sizes(dtype: str, interleaved: str) -> None:
    attrs = f"interleaved={interleaved}"
    graph = body(3, 19, 37, attrs=attrs, bias=True, dtype=dtype, transposed=True)
    assert max(error(graph, rows) for rows in (1, 9)) < LIMITS[dtype]


def test_biases_of_whole_vectors() -> None:
    assert max(error(body(bias=True), rows) for rows in (1, 9)) < LIMITS["f32"]


@pytest.mark.parametrize("stored", ["bf16", "f16"])
def test_weights_that_are_stored_narrow(stored: str) -> None:
    graph = body(4, 33, 31, stored=stored)
    assert max(error(graph, rows) for rows in (1, 5)) < LIMITS["f32"]


def test_one_expert_for_each_token_of_very_many() -> None:
    assert error(body(40, 17, 16, 1), 23) < LIMITS["f32"]


def test_every_expert_for_each_token() -> None:
    assert max(error(body(2, 16, 16, 2), rows) for rows in (2, 31)) < LIMITS["f32"]


def test_without_avx512() -> None:
    assert max(error(body(dtype="bf16"), rows, device=AVX2) for rows in (1, 9)) < LIMITS["bf16"]


def test_few_and_many_tokens_are_two_cases() -> None:
    lowered = rule(body(), choices())
    assert lowered is not None
    assert [case.most for case in lowered.cases] == [FEW, None]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("form", ["f32", "bf16", "f16"])
def test_stacked_weights_come_back_bit_for_bit(form: str, turned: bool, interleaved: bool) -> None:
    dtype = {"f32": np.float32, "bf16": ml_dtypes.bfloat16, "f16": np.float16}[form]
    weight = np.random.default_rng(1).standard_normal((3, 23, 38) if turned else (3, 38, 23)).astype(dtype)
    layout = Stacked(tiles_for(form, 19, 23, tile=32, turned=turned), 3, 2, interleaved)
    arrays = layout.pack([weight])
    assert {name: array.shape for name, array in arrays.items()} == {n: p.shape for n, p in layout.parts.items()}
    (back,) = layout.unpack(arrays)
    assert back.dtype == weight.dtype and np.array_equal(back, weight)


def test_packed_experts_are_refused() -> None:
    text = """program @p {
    graph @m(%x: f32[4, 64], %i: i64[4, 2], %s: f32[4, 2], %g: q8_0[3, 64, 64], %d: f32[3, 64, 32]) -> (y: f32[4, 64]) {
    %f = irx.dequantize(%g) : f32[3, 64, 64]
    %y = irx.moe(%x, %i, %s, %f, %d) : f32[4, 64]
    return %y
    }
    }"""
    with pytest.raises(Refusal, match="weights come from dequantize"):
        rule(parse_text(text).graphs["m"], choices())
