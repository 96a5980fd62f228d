"""Convolutions against the oracle: patches, edges, strides, dilations, groups, odd sizes, bfloat16."""

import numpy as np
import pytest

import irx.ops  # noqa: F401 - registers the ops that the texts name
from irx.analysis.reference import evaluate
from irx.backends.regions.lowered import Refusal
from irx.backends.tvm.layouts.stacked import Flattened
from irx.backends.tvm.layouts.tiles import tiles_for
from irx.backends.tvm.rules.conv import rule
from irx.ir.graph import Graph
from irx.ir.parser import parse as parse_text
from irx.ir.types import numpy_dtype
from irx.ir.weights import Weights
from irx.target import Device
from irx.target.device import find_device
from tests.backends.tvm.lowered_run import choices, run_lowered

AVX2 = find_device("cpu-avx2")
LIMITS = {"f32": 1e-5, "bf16": 1e-2}


def conv(
    x: str, weight: tuple[int, ...], result: str, attrs: str = "", *, bias: bool = True, dtype: str = "f32"
) -> Graph:
    """A body of one convolution; `x` and `result` are the sizes after the batch."""
    inputs = [f"%x: {dtype}[B, {x}]", f"%w: {dtype}[{', '.join(map(str, weight))}]"]
    inputs += [f"%b: {dtype}[{weight[0]}]"] if bias else []
    type, op = f"{dtype}[B, {result}]", f"conv{len(weight) - 2}d"
    given = "%x, %w, %b" if bias else "%x, %w"
    line = f"%y = irx.{op}({given}) {{{attrs}}} : {type}"
    head = f"graph @g({', '.join(inputs)}) -> (y: {type}) {{"
    sizes = ["size B in [1, 64]", "size L in [5, 5000]"]
    return parse_text("\n".join(["program @p {", *sizes, head, line, "return %y", "}", "}"])).graphs["g"]


def error(graph: Graph, batch: int = 2, length: int = 37, threads: int = 2, device: Device | None = None) -> float:
    """The largest difference from the oracle relative to its largest result."""
    lowered = rule(graph, choices(device))
    assert lowered is not None
    random, sizes = np.random.default_rng(0), {"B": batch, "L": length}
    arrays = {
        v.name: random.standard_normal([s if isinstance(s, int) else sizes[str(s)] for s in v.shape]).astype(
            numpy_dtype(v.dtype)
        )
        for v in graph.inputs
    }
    found = np.asarray(run_lowered(lowered, graph, arrays, sizes, threads=threads, device=device)["y"], np.float64)
    (expected,) = evaluate(graph, arrays, sizes, Weights())
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("threads", [1, 2])
def test_patches_of_images(dtype: str, threads: int) -> None:
    graph = conv("3, 32, 24", (40, 3, 8, 8), "40, 4, 3", "stride=[8, 8]", dtype=dtype)
    assert error(graph, threads=threads) < LIMITS[dtype]


@pytest.mark.parametrize("batch", [1, 3])
def test_few_positions(batch: int) -> None:
    assert error(conv("3, 8, 8", (17, 3, 8, 8), "17, 1, 1", "stride=[8, 8]", bias=False), batch) < LIMITS["f32"]


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_line_with_edges_and_a_stride(dtype: str) -> None:
    graph = conv("5, L", (33, 5, 3), "33, (L - 1)//2 + 1", "stride=2, padding=1", dtype=dtype)
    assert error(graph, 2, 41) < LIMITS[dtype]
    assert error(graph, 1, 5, threads=1) < LIMITS[dtype]


def test_dilation_and_unequal_axes() -> None:
    attrs = "stride=[1, 2], padding=[2, 1], dilation=[2, 1]"
    assert error(conv("3, 9, 11", (16, 3, 3, 2), "16, 9, 6", attrs)) < LIMITS["f32"]


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("threads", [1, 2])
def test_one_filter_for_each_channel(dtype: str, threads: int) -> None:
    graph = conv("6, L", (6, 1, 4), "6, L + 3", "padding=3, groups=6", dtype=dtype)
    assert error(graph, threads=threads) < LIMITS[dtype]
    assert error(graph, length=5, threads=threads) < LIMITS[dtype]


@pytest.mark.parametrize("attrs", ["padding=[1, 1]", "padding=[1, 1], stride=[2, 2]", "dilation=[1, 2]"])
def test_groups_of_filters(attrs: str) -> None:
    result = {"padding=[1, 1]": "8, 7, 45", "dilation=[1, 2]": "8, 5, 41"}.get(attrs, "8, 4, 23")
    assert error(conv("4, 7, 45", (8, 2, 3, 3), result, f"{attrs}, groups=2")) < LIMITS["f32"]


def test_without_avx512() -> None:
    assert error(conv("5, L", (33, 5, 3), "33, L", "padding=1"), device=AVX2) < LIMITS["f32"]
    assert error(conv("5, L", (5, 1, 3), "5, L", "padding=1, groups=5"), device=AVX2) < LIMITS["f32"]


def test_filters_come_back_bit_for_bit() -> None:
    weight = np.random.default_rng(1).standard_normal((33, 5, 3)).astype(np.float32)
    layout = Flattened(tiles_for("f32", 33, 15), weight.shape)
    (back,) = layout.unpack(layout.pack([weight]))
    assert back.shape == weight.shape and np.array_equal(back, weight)


def test_other_ops_beside_a_convolution_are_refused() -> None:
    text = """program @p {
    graph @g(%x: f32[1, 2, 5], %w: f32[4, 2, 3]) -> (y: f32[1, 4, 3]) {
    %c = irx.conv1d(%x, %w) : f32[1, 4, 3]
    %y = irx.relu(%c) : f32[1, 4, 3]
    return %y
    }
    }"""
    with pytest.raises(Refusal, match="together with other ops"):
        rule(parse_text(text).graphs["g"], choices())
