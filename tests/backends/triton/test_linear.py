"""The rule of linear regions: cases, refusals, the layout of weights, and binaries of default schedules."""

import numpy as np
import pytest

from irx.backends.layouts.coding import CODINGS
from irx.backends.regions.lowered import Choices, Refusal
from irx.backends.triton.compiling import compile_kernels
from irx.backends.triton.resources import read_usage
from irx.backends.triton.rules.linear import rule
from irx.backends.triton.templates.linear_layout import Chunks
from irx.ir.blocks import FORMATS
from irx.ir.graph import Graph
from irx.ir.types import numpy_dtype
from irx.target import find_device
from tests.backends.triton.linear_bodies import body, default, gated, plain


@pytest.mark.parametrize("form", sorted(CODINGS))
def test_packed_weights_come_back_bit_for_bit_from_an_equally_small_layout(form: str) -> None:
    raw = np.random.default_rng(0).integers(0, 256, FORMATS[form].packed_shape((7, 512)), dtype=np.uint8)
    layout = Chunks(form, 7, 512)
    arrays = layout.pack([raw])
    (back,) = layout.unpack(arrays)
    assert (back == raw).all()
    assert {name: array.shape for name, array in arrays.items()} == {n: p.shape for n, p in layout.parts.items()}
    assert layout.bytes == sum(array.nbytes for array in arrays.values()) <= 1.05 * raw.nbytes


@pytest.mark.parametrize(("form", "columns", "depth"), [("bf16", 100, 104), ("f32", 33, 33), ("f16", 576, 576)])
@pytest.mark.parametrize("turned", [False, True])
def test_rows_of_floats_are_padded_where_that_is_cheap(form: str, columns: int, depth: int, turned: bool) -> None:
    layout = Chunks(form, 5, columns, turned)
    shape = (columns, 5) if turned else (5, columns)
    weight = np.random.default_rng(0).standard_normal(shape).astype(numpy_dtype(form))
    arrays = layout.pack([weight])
    assert arrays["data"].shape == (5, depth)
    (back,) = layout.unpack(arrays)
    assert back.dtype == weight.dtype and (back == weight).all()


def test_the_rule_takes_any_number_of_rows() -> None:
    lowered = rule(plain("f32", 64, 64), default())
    assert lowered is not None
    assert [case.most for case in lowered.cases] == [1, 2, 4, 16, None]


def test_a_body_without_a_linear_is_not_the_rule_s() -> None:
    graph = body(["x: f32[B, 8]"], ["%y = irx.silu(%x) : f32[B, 8]"], [("y", "f32[B, 8]")])
    assert rule(graph, default()) is None


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        (["%l = irx.linear(%x, %w) : f32[B, 64]", "%y = irx.softmax(%l) {axis=-1} : f32[B, 64]"], "softmax after"),
        (
            ["%c = irx.round_activations(%x) {bits=8, group=32} : f32[B, 64]", "%y = irx.linear(%c, %w) : f32[B, 64]"],
            "activations of 8 bits",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(nodes: list[str], reason: str) -> None:
    graph = body(["x: f32[B, 64]", "w: f32[64, 64]"], nodes, [("y", "f32[B, 64]")])
    with pytest.raises(Refusal, match=reason):
        rule(graph, default())


def test_schedules_are_asked_for_by_format_size_and_rows() -> None:
    asked: list[str] = []

    def schedule(template: str, bucket: str, defaults: object) -> dict[str, int]:
        asked.append(f"{template}: {bucket}")
        return dict(defaults)  # type: ignore[call-overload]

    rule(gated("q4_1", 32, 96), Choices(find_device("h200"), schedule))
    assert asked[0] == "matvec: q4_1/f32 2x 32x96 rms_norm rows1"
    assert asked[-1] == "gemm: q4_1/f32 2x 32x96 rms_norm rows"


@pytest.mark.parametrize(
    ("device", "graph", "most"),
    [
        ("a100", gated("i4g128", 2048, 2048, "bf16"), 1),
        ("h200", plain("q4_1", 576, 1536, "bf16"), 4),
        ("a100", plain("bf16", 576, 1536, "bf16"), 16),
        ("h200", gated("bf16", 1536, 576, "bf16"), None),
    ],
)
def test_default_schedules_compile_without_spills(device: str, graph: Graph, most: int | None) -> None:
    found = find_device(device)
    lowered = rule(graph, default(device))
    assert lowered is not None
    (case,) = (case for case in lowered.cases if case.most == most)
    for symbol, binary in compile_kernels([call.kernel for call in case.calls], found).items():
        usage = read_usage(binary.data, symbol, found, shared=binary.shared, warps=binary.warps)
        assert usage.spills == 0 and usage.refusal(found) is None, f"{symbol}: {usage.describe(found)}"
