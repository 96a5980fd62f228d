"""Matrix-product kernels against the oracle: formats, tiles, norms inside and before, epilogues, odd sizes."""

from collections.abc import Callable

import pytest

from irx.backends.regions.lowered import Call, Choices
from irx.backends.triton.templates.gemm import gemm_calls
from irx.backends.triton.templates.linear_shape import Problem
from tests.backends.triton.linear_bodies import chosen, default, error, every_index, gated, plain

FLOAT32, PACKED, BF16, F16 = 1e-5, 1e-4, 1e-2, 1e-3


def rows(most: int | None) -> Callable[[Problem, Choices], tuple[Call, ...]]:
    return lambda problem, choices: gemm_calls(problem, most, choices)


@pytest.mark.parametrize("form", ["q8_0", "q4_0", "q4_1", "q5_1", "q4_k", "q6_k", "i8g64", "u4g16"])
def test_packed_weights(form: str) -> None:
    assert error(plain(form, 50, 512), 5, rows(16), default()) < PACKED


@pytest.mark.parametrize("most", [16, None])
@pytest.mark.parametrize(
    ("form", "x", "allowed"),
    [("f32", "f32", FLOAT32), ("bf16", "f32", FLOAT32), ("bf16", "bf16", BF16), ("f16", "f16", F16)],
)
def test_float_weights(form: str, x: str, allowed: float, most: int | None) -> None:
    assert error(plain(form, 100, 96, x), 13, rows(most), default()) < allowed


@pytest.mark.parametrize(
    ("n", "k", "form", "x", "allowed"),
    [
        (1, 33, "f32", "f32", FLOAT32),
        (31, 1, "bf16", "bf16", BF16),
        (101, 33, "bf16", "bf16", BF16),
        (37, 96, "q4_1", "bf16", BF16),
    ],
)
def test_odd_sizes(n: int, k: int, form: str, x: str, allowed: float) -> None:
    assert error(plain(form, n, k, x), 71, rows(None), default()) < allowed


@pytest.mark.parametrize(
    ("form", "count", "most", "knobs"),
    [
        ("bf16", 9, 16, {"split": 4}),
        ("q4_0", 70, None, {"split": 2}),
        ("bf16", 200, None, {"persistent": 1, "stripe": 4}),
    ],
)
def test_schedules(form: str, count: int, most: int | None, knobs: dict[str, int]) -> None:
    assert error(plain(form, 90, 512), count, rows(most), chosen(**knobs)) < PACKED  # type: ignore[arg-type]


@pytest.mark.parametrize(("form", "x", "allowed"), [("q4_1", "f32", PACKED), ("bf16", "bf16", BF16)])
@pytest.mark.parametrize(("count", "most"), [(9, 16), (20, None)])
def test_norm_two_products_and_a_residual(form: str, x: str, allowed: float, count: int, most: int | None) -> None:
    assert error(gated(form, 40, 96, x), count, rows(most), default()) < allowed


@pytest.mark.parametrize(("count", "most"), [(9, 16), (20, None)])
def test_layer_norm_and_operands_of_every_index(count: int, most: int | None) -> None:
    assert error(every_index(), count, rows(most), default()) < FLOAT32


@pytest.mark.parametrize(("form", "count", "most"), [("f32", 9, 16), ("bf16", 20, None)])
def test_activations_rounded_to_bf16(form: str, count: int, most: int | None) -> None:
    before = '%h = irx.cast(%x) {dtype="bf16"} : bf16[B, 96]\n%c = irx.cast(%h) {dtype="f32"} : f32[B, 96]'
    assert error(plain(form, 64, 96, before=before), count, rows(most), default()) < FLOAT32
