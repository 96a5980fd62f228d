"""Attention: merging of partial results, statistics of keys, independence of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from irx.ir.opdef import lookup

Arrays = tuple[np.ndarray[Any, Any], ...]


def run(op: str, *operands: Any, **attrs: Any) -> Any:
    return lookup(op).reference(*operands, **attrs)


def operands(rows: int, keys: int, seed: int = 0) -> Arrays:
    generator = np.random.default_rng(seed)
    shapes = ((2, 6, rows, 8), (2, 3, keys, 8), (2, 3, keys, 5))
    return tuple(generator.standard_normal(shape) for shape in shapes)


def test_merge_by_hand() -> None:
    """Logits 0 and ln 3 with values 1 and 5 in two parts give 4."""
    one = np.ones((1, 1, 1, 1))
    first = run("attention_lse", one, 0 * one, one, scale=1.0)
    second = run("attention_lse", one, np.log(3) * one, 5 * one, scale=1.0)
    out, lse = run("merge_attention", *first, *second)
    np.testing.assert_allclose(out, 4.0, rtol=1e-15)
    np.testing.assert_allclose(lse, np.log(4), rtol=1e-15)


@pytest.mark.parametrize("seed", range(5))
def test_any_split_merges_to_the_unsplit_result(seed: int) -> None:
    q, k, v = operands(4, 13, seed)
    generator = np.random.default_rng(seed)
    first = generator.random(13) < 0.4
    whole = run("attention_lse", q, k, v, scale=0.3)
    parts = [run("attention_lse", q, k[:, :, part], v[:, :, part], scale=0.3) for part in (first, ~first)]
    merged = run("merge_attention", *parts[0], *parts[1])
    for a, b in zip(merged, whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_an_empty_part_weighs_nothing_and_two_give_zero() -> None:
    q, k, v = operands(2, 3)
    nothing = run("attention_lse", q, k[:, :, :0], v[:, :, :0], scale=0.3)
    np.testing.assert_array_equal(nothing[0], 0)
    np.testing.assert_array_equal(nothing[1], -np.inf)
    whole = run("attention_lse", q, k, v, scale=0.3)
    for order in ((nothing, whole), (whole, nothing)):
        out, lse = run("merge_attention", *order[0], *order[1])
        np.testing.assert_allclose(out, whole[0], rtol=1e-15)
        np.testing.assert_allclose(lse, whole[1], rtol=1e-15)
    out, lse = run("merge_attention", *nothing, *nothing)
    np.testing.assert_array_equal(out, 0)
    np.testing.assert_array_equal(lse, -np.inf)


def test_merge_survives_large_logits() -> None:
    out = np.ones((1, 1, 1, 2))
    lse = np.full((1, 1, 1), 5000.0)
    merged, total = run("merge_attention", out, lse, 3 * out, lse)
    np.testing.assert_allclose(merged, 2.0)
    np.testing.assert_allclose(total, 5000 + np.log(2))


def test_a_sink_belongs_to_exactly_one_part() -> None:
    q, k, v = operands(3, 9)
    sinks = np.linspace(-1, 1, 6)
    whole = run("attention_lse", q, k, v, None, None, sinks, scale=0.3)
    first = run("attention_lse", q, k[:, :, :4], v[:, :, :4], None, None, sinks, scale=0.3)
    second = run("attention_lse", q, k[:, :, 4:], v[:, :, 4:], scale=0.3)
    np.testing.assert_allclose(run("merge_attention", *first, *second)[0], whole[0], rtol=1e-12, atol=1e-14)
    assert np.all(np.abs(whole[0]) < np.abs(run("attention", q, k, v, scale=0.3)))


def test_rows_do_not_depend_on_how_many_are_computed() -> None:
    q, k, v = operands(11, 11)
    whole = run("attention", q, k, v, scale=0.3, causal=True, window=4)
    for rows in (1, 5):
        part = run("attention", *(x[:, :, :rows] for x in (q, k, v)), scale=0.3, causal=True, window=4)
        np.testing.assert_array_equal(part, whole[:, :, :rows])


def test_a_window_as_long_as_the_sequence_is_causal_attention() -> None:
    q, k, v = operands(7, 7)
    causal = run("attention", q, k, v, scale=0.3, causal=True)
    np.testing.assert_array_equal(run("attention", q, k, v, scale=0.3, causal=True, window=7), causal)
    assert not np.allclose(run("attention", q, k, v, scale=0.3, causal=True, window=6), causal)


def explicit(q: Any, k: Any, causal: bool) -> Any:
    """Softmax probabilities [B, H, S, T]."""
    logits = 0.3 * q @ np.swapaxes(np.repeat(k, 2, axis=1), -1, -2)
    if causal:
        logits = np.where(np.tri(*logits.shape[-2:]) > 0, logits, -np.inf)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 4, 99])
def test_statistics_are_column_sums_of_the_softmax(causal: bool, rows: int) -> None:
    q, k, v = operands(7, 7)
    _, lse = run("attention_lse", q, k, v, scale=0.3, causal=causal)
    p = explicit(q, k, causal)[:, :, -rows:]
    c, n = run("attention_stats", q, k, lse, scale=0.3, causal=causal, rows=rows)
    np.testing.assert_allclose(c, p.sum(2).reshape(2, 3, 2, 7).sum(2), rtol=1e-12)
    np.testing.assert_array_equal(n, (p[0, 0] > 0).sum(0))
    np.testing.assert_allclose(c.sum(-1), 2 * p.shape[2], rtol=1e-12, err_msg="every row of both heads sums to 1")


def test_statistics_reduce_as_named() -> None:
    q, k, v = operands(7, 7)
    _, lse = run("attention_lse", q, k, v, scale=0.3)
    p = explicit(q, k, False).reshape(2, 3, 2, 7, 7)
    for group in ("sum", "mean", "max"):
        c, _ = run("attention_stats", q, k, lse, scale=0.3, reduce="max", group=group)
        np.testing.assert_allclose(c, getattr(np, group)(p.max(3), axis=2), rtol=1e-12)
