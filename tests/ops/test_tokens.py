"""Selecting and merging tokens at their limits, and the distribution that sampling draws from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from irx.ir.opdef import lookup


def run(op: str, *operands: Any, **attrs: Any) -> Any:
    return lookup(op).reference(*operands, **attrs)


def test_keeping_all_tokens_is_the_identity() -> None:
    x = np.random.default_rng(0).standard_normal((2, 7, 5))
    index = run("topk_tokens", x[..., 0], keep=7)
    np.testing.assert_array_equal(index, np.broadcast_to(np.arange(7), (2, 7)))
    np.testing.assert_array_equal(run("gather_tokens", x, index), x)


def test_positions_travel_with_their_tokens() -> None:
    scores = np.random.default_rng(0).standard_normal((2, 7))
    positions = np.broadcast_to(np.arange(10, 17), (2, 7))
    index = run("topk_tokens", scores, keep=3)
    kept = run("gather_tokens", positions, index)
    assert np.all(np.diff(kept, axis=1) > 0)
    np.testing.assert_array_equal(kept[:, -1], 16)
    np.testing.assert_array_equal(kept, index + 10)


def test_scatter_undoes_gather() -> None:
    x = np.random.default_rng(0).standard_normal((2, 7, 5))
    index = np.array([[0, 2, 6], [1, 3, 4]])
    np.testing.assert_array_equal(run("scatter_tokens", x, index, run("gather_tokens", x, index)), x)


def test_merging_keeps_the_weighted_sum_and_the_sizes() -> None:
    generator = np.random.default_rng(0)
    x, sizes = generator.standard_normal((2, 7, 5)), generator.integers(1, 5, (2, 7)).astype(float)
    merged, total = run("merge_tokens", x, sizes, np.array([[1, 3, 5], [1, 3, 5]]), np.array([[0, 0, 6], [2, 4, 2]]))
    assert merged.shape == (2, 4, 5)
    np.testing.assert_allclose(total.sum(1), sizes.sum(1))
    np.testing.assert_allclose((merged * total[..., None]).sum(1), (x * sizes[..., None]).sum(1))


def test_merging_equal_tokens_changes_nobody() -> None:
    x = np.random.default_rng(0).standard_normal((1, 4, 3))
    x[0, 2] = x[0, 1]
    merged, total = run("merge_tokens", x, np.ones((1, 4)), np.array([[2]]), np.array([[1]]))
    np.testing.assert_allclose(merged[0], x[0, [0, 1, 3]], rtol=1e-15)
    np.testing.assert_array_equal(total, [[1, 2, 1]])


def draws(count: int = 4000, **attrs: Any) -> Any:
    """Relative frequencies of the tokens at evenly spaced uniform numbers."""
    logits = np.log(np.array([[0.1, 0.4, 0.2, 0.3]]))
    uniform = (np.arange(count) + 0.5) / count
    tokens = run("sample", np.repeat(logits, count, 0), uniform, **attrs)
    return np.bincount(tokens, minlength=4) / count


@pytest.mark.parametrize(
    ("attrs", "expected"),
    [
        ({"temperature": 1.0}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0.5}, np.array([0.01, 0.16, 0.04, 0.09]) / 0.3),
        ({"temperature": 1.0, "top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"temperature": 1.0, "top_p": 0.65}, [0, 4 / 7, 0, 3 / 7]),
        ({"temperature": 1.0, "top_p": 0.75}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"temperature": 1.0, "top_p": 0.01}, [0, 1, 0, 0]),
        ({"temperature": 0.0}, [0, 1, 0, 0]),
    ],
)
def test_sampling_draws_from_the_stated_distribution(attrs: dict[str, Any], expected: Any) -> None:
    np.testing.assert_allclose(draws(**attrs), expected, atol=5e-4)
