"""What the oracle relies on: accuracy in float64, a fixed order of summation, ties."""

from __future__ import annotations

import math

import numpy as np
import pytest

from irx.ir.opdef import lookup
from irx.ops.numerics import erf, gelu, project, sigmoid, top_indices


def test_erf_is_accurate_and_keeps_shape_and_dtype() -> None:
    x = np.linspace(-6, 6, 1001).reshape(7, 11, 13)
    np.testing.assert_array_equal(erf(x), [[[math.erf(v) for v in row] for row in plane] for plane in x])
    assert erf(x.astype(np.float32)).dtype == np.float32
    assert erf(np.array(0.5)).shape == ()


def test_sigmoid_has_no_overflow_and_keeps_small_values() -> None:
    with np.errstate(all="raise", under="ignore"):
        values = sigmoid(np.array([-700.0, -40.0, 0.0, 40.0, 700.0]))
    np.testing.assert_allclose(values[:3], [math.exp(-700), math.exp(-40), 0.5], rtol=1e-12)
    np.testing.assert_array_equal(values[3:], [1 - math.exp(-40), 1.0])


def test_gelu_forms_are_close_but_not_equal() -> None:
    x = np.linspace(-4, 4, 101)
    distance = np.abs(gelu(x) - gelu(x, "tanh"))
    assert 1e-5 < distance.max() < 1e-3


@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_a_row_of_a_product_does_not_depend_on_the_others(rows: int) -> None:
    generator = np.random.default_rng(0)
    x, weight = generator.standard_normal((64, 129)), generator.standard_normal((77, 129)).astype(np.float32)
    np.testing.assert_array_equal(project(x, weight)[:rows], project(x[:rows], weight))
    np.testing.assert_array_equal(project(x, weight)[-rows:], project(x[-rows:], weight))


@pytest.mark.parametrize("outputs", [1, 2, 7, 64])
def test_merging_and_splitting_weights_changes_nothing(outputs: int) -> None:
    generator = np.random.default_rng(0)
    x, weight = generator.standard_normal((3, 129)), generator.standard_normal((77, 129))
    whole = project(x, weight)
    np.testing.assert_array_equal(project(x, weight[:outputs]), whole[:, :outputs])
    np.testing.assert_array_equal(project(x, weight[-outputs:]), whole[:, -outputs:])


def test_linear_and_matmul_agree_bit_for_bit() -> None:
    generator = np.random.default_rng(0)
    x, weight = generator.standard_normal((5, 33)), generator.standard_normal((9, 33))
    product = lookup("matmul").reference(x[None], weight.T[None])[0]
    np.testing.assert_array_equal(product, lookup("linear").reference(x, weight))


def test_project_lifts_low_precision_weights() -> None:
    weight = np.full((3, 4096), 0.1, np.float16)
    result = project(np.ones((1, 4096)), weight)
    np.testing.assert_allclose(result, 4096 * float(np.float16(0.1)), rtol=1e-14)


def test_top_indices_prefers_the_lower_index() -> None:
    x = np.array([[1.0, 3.0, 3.0, 2.0, 3.0], [-np.inf, 0.0, -np.inf, 0.0, -np.inf]])
    np.testing.assert_array_equal(top_indices(x, 4), [[1, 2, 4, 3], [1, 3, 0, 2]])
    np.testing.assert_array_equal(top_indices(np.array([3, 1, 3], np.uint8), 2), [0, 2])


def test_half_precision_statistics_are_accumulated_in_float32() -> None:
    x = np.full((1, 4096), 300.0, np.float16)  # the sum of squares exceeds float16 by far
    y = lookup("rms_norm").reference(x, eps=1e-6)
    assert y.dtype == np.float16
    np.testing.assert_allclose(y.astype(np.float64), 1.0, rtol=1e-3)


@pytest.mark.parametrize(("cast_before_weight", "expected"), [(True, 1.296875), (False, 1.3046875)])
def test_rms_norm_rounds_where_it_says(cast_before_weight: bool, expected: float) -> None:
    """By hand: 1 / sqrt((1 + 0.828125**2) / 2) is 1.08921, in bf16 1.0859375; times the weight 1.30195, 1.29803."""
    import ml_dtypes

    x = np.array([[1.0, 0.828125]], ml_dtypes.bfloat16)
    weight = np.array([1.1953125, 1.0], ml_dtypes.bfloat16)
    y = lookup("rms_norm").reference(x, weight, eps=0.0, cast_before_weight=cast_before_weight)
    assert y.dtype == ml_dtypes.bfloat16
    assert float(y[0, 0]) == expected
