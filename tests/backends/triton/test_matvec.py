"""Matrix-vector kernels against the oracle: weight formats, rows, norms, epilogues, odd sizes, shared sums."""

from collections.abc import Callable

import pytest

from irx.backends.regions.linear_region import parse
from irx.backends.regions.lowered import Call, Choices
from irx.backends.triton.templates.linear_shape import Problem, problem_of
from irx.backends.triton.templates.matvec import matvec_calls
from tests.backends.triton.linear_bodies import chosen, default, error, every_index, gated, plain

FLOAT32, PACKED, BF16, F16 = 1e-5, 1e-4, 1e-2, 1e-3


def rows(most: int) -> Callable[[Problem, Choices], tuple[Call, ...]]:
    return lambda problem, choices: matvec_calls(problem, most, choices)


@pytest.mark.parametrize(
    "form", ["q8_0", "q4_0", "q4_1", "q5_1", "q4_k", "q6_k", "i8g64", "i4g128", "u4g16", "i4g16", "q5_k"]
)
def test_packed_weights(form: str) -> None:
    assert error(plain(form, 20, 512), 1, rows(1), chosen(columns=16)) < PACKED


@pytest.mark.parametrize(("form", "x", "allowed"), [("q4_1", "f32", PACKED), ("i8g64", "bf16", BF16)])
@pytest.mark.parametrize("count", [2, 3])
def test_packed_weights_for_more_rows(form: str, x: str, allowed: float, count: int) -> None:
    assert error(plain(form, 32, 128, x), count, rows(2 if count == 2 else 4), chosen(columns=16)) < allowed


@pytest.mark.parametrize(
    ("form", "x", "allowed"),
    [
        ("f32", "f32", FLOAT32),
        ("bf16", "f32", FLOAT32),
        ("f16", "f32", FLOAT32),
        ("bf16", "bf16", BF16),
        ("f16", "f16", F16),
    ],
)
@pytest.mark.parametrize("count", [1, 2])
def test_float_weights(form: str, x: str, allowed: float, count: int) -> None:
    assert error(plain(form, 64, 96, x), count, rows(count), chosen(columns=16)) < allowed


@pytest.mark.parametrize(
    ("n", "k", "form", "x", "allowed"),
    [
        (1, 33, "f32", "f32", FLOAT32),
        (7, 7, "bf16", "f32", FLOAT32),
        (31, 1, "bf16", "bf16", BF16),
        (101, 33, "bf16", "bf16", BF16),
        (100, 1, "f32", "f32", FLOAT32),
    ],
)
def test_odd_sizes_on_default_schedules(n: int, k: int, form: str, x: str, allowed: float) -> None:
    assert error(plain(form, n, k, x), 3, rows(4), default()) < allowed


@pytest.mark.parametrize(
    ("form", "k", "knobs"),
    [("bf16", 1000, {"split": 4, "span": 16}), ("bf16", 256, {"span": 8, "stages": 3}), ("q4_0", 1024, {"split": 2})],
)
def test_passes_over_rows_and_sums_that_programs_share(form: str, k: int, knobs: dict[str, int]) -> None:
    knobs = {"span": 8, "columns": 16, **knobs}
    assert error(plain(form, 40, k), 2, rows(2), chosen(**knobs)) < PACKED  # type: ignore[arg-type]


@pytest.mark.parametrize(("form", "x", "allowed"), [("q4_1", "f32", PACKED), ("bf16", "bf16", BF16)])
@pytest.mark.parametrize("split", [1, 2])
def test_norm_two_products_and_a_residual(form: str, x: str, allowed: float, split: int) -> None:
    assert error(gated(form, 24, 96, x), 3, rows(4), chosen(columns=8, span=2, split=split)) < allowed


def test_layer_norm_and_operands_of_every_index() -> None:
    assert error(every_index(), 3, rows(4), chosen(columns=16)) < FLOAT32


def test_activations_rounded_to_bf16() -> None:
    before = '%h = irx.cast(%x) {dtype="bf16"} : bf16[B, 96]\n%c = irx.cast(%h) {dtype="f32"} : f32[B, 96]'
    assert error(plain("f32", 32, 96, before=before), 1, rows(1), chosen(columns=16)) < FLOAT32


def test_a_vector_s_kernel_reads_every_weight_in_whole_instructions() -> None:
    """Rows of a weight that is padded to 16 bytes begin on them, and nothing is masked where passes are full."""
    region = parse(plain("bf16", 64, 2048, "bf16"))
    assert region is not None
    (call,) = matvec_calls(problem_of(region, default().device), 1, default())
    assert "mask" not in call.kernel.source
