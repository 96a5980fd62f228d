"""The cache: appending in any chunks and attending equals attention over the whole sequence, padded or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from irx.ir.opdef import lookup
from irx.ir.types import KVType
from irx.ops.cache import KVArrays

KV = KVType(3, 3, 8, 5, "f64")
LENGTH = 11


def run(op: str, *operands: Any, **attrs: Any) -> Any:
    return lookup(op).reference(*operands, **attrs)


def sequence(length: int = LENGTH, seed: int = 0) -> tuple[Any, Any, Any]:
    generator = np.random.default_rng(seed)
    shapes = ((1, 6, length, 8), (1, 3, length, 8), (1, 3, length, 5))
    q, k, v = (generator.standard_normal(shape) for shape in shapes)
    return q, k, v


def cached(chunks: list[int], **attrs: Any) -> Any:
    """Attention of one sequence fed in chunks."""
    q, k, v = sequence()
    kv, start, parts = KVArrays.empty(KV, 1), 0, []
    for size in chunks:
        part = slice(start, start + size)
        pos = np.arange(start, start + size)[None]
        kv = run("kv_append", kv, k[:, :, part], v[:, :, part], pos)
        parts.append(run("kv_attention", q[:, :, part], kv, pos, scale=0.3, **attrs))
        start += size
    return np.concatenate(parts, axis=2)


@pytest.mark.parametrize("chunks", [[11], [1] * 11, [7, 1, 3], [1, 10]], ids=str)
@pytest.mark.parametrize("window", [None, 3, 11, 50])
def test_any_chunking_equals_attention_bit_for_bit(chunks: list[int], window: int | None) -> None:
    q, k, v = sequence()
    whole = run("attention", q, k, v, scale=0.3, causal=True, window=window)
    np.testing.assert_array_equal(cached(chunks, window=window), whole)


def test_bias_table_softcap_and_sinks_equal_attention() -> None:
    q, k, v = sequence()
    table, sinks = np.random.default_rng(1).standard_normal((6, 4)), np.linspace(-1, 1, 6)
    pos = np.arange(LENGTH)[None]
    bias = run("relative_bias", pos, table, keys=LENGTH)
    whole = run("attention", q, k, v, None, bias, sinks, scale=0.3, causal=True, softcap=2.0)
    part = cached([4, 7], table=table, sinks=sinks, softcap=2.0)
    np.testing.assert_array_equal(part, whole)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("window", [None, 3])
def test_ragged_rows_equal_each_sequence_alone(side: str, window: int | None) -> None:
    lengths = [LENGTH, 4, 1]
    rows = [sequence(n, seed=n) for n in lengths]
    before = [LENGTH - n if side == "left" else 0 for n in lengths]
    padded = [padded_rows([row[i] for row in rows], before) for i in range(3)]
    pos = np.full((3, LENGTH), -1)
    for b, (n, start) in enumerate(zip(lengths, before, strict=True)):
        pos[b, start : start + n] = np.arange(n)
    kv = run("kv_append", KVArrays.empty(KV, 3), padded[1], padded[2], pos)
    out = run("kv_attention", padded[0], kv, pos, scale=0.3, window=window)
    for b, (n, start) in enumerate(zip(lengths, before, strict=True)):
        alone = run("attention", *rows[b], scale=0.3, causal=True, window=window)
        np.testing.assert_array_equal(out[b : b + 1, :, start : start + n], alone)
    assert kv.positions.shape == (3, 3, LENGTH)
    np.testing.assert_array_equal((kv.positions >= 0).sum(2), np.repeat(np.array(lengths)[:, None], 3, 1))


def padded_rows(arrays: list[Any], before: list[int]) -> Any:
    """Rows [1, H, n, D] as one batch of length LENGTH, padding filled with numbers that must not matter."""
    result = np.full((len(arrays), arrays[0].shape[1], LENGTH, arrays[0].shape[3]), 1e6)
    for b, (row, start) in enumerate(zip(arrays, before, strict=True)):
        result[b, :, start : start + row.shape[2]] = row[0]
    return result


def test_append_leaves_the_old_state_alone_and_overwrites_a_position() -> None:
    _, k, v = sequence()
    pos = np.arange(LENGTH)[None]
    kv = run("kv_append", KVArrays.empty(KV, 1), k, v, pos)
    again = run("kv_append", kv, 2 * k[:, :, :3], v[:, :, :3], pos[:, :3])
    np.testing.assert_array_equal(kv.k, k)
    np.testing.assert_array_equal(again.k[:, :, :3], 2 * k[:, :, :3])
    np.testing.assert_array_equal(again.k[:, :, 3:], k[:, :, 3:])


def test_permuting_slots_with_their_positions_leaves_attention_unchanged() -> None:
    q, k, v = sequence()
    pos = np.arange(LENGTH)[None]
    kv = run("kv_append", KVArrays.empty(KV, 1), k, v, pos)
    order = np.random.default_rng(2).permuted(np.broadcast_to(np.arange(LENGTH), (1, 3, LENGTH)), axis=2)
    moved = run("kv_gather", kv, order)
    out = [run("kv_attention", q, state, pos, scale=0.3, window=4) for state in (kv, moved)]
    np.testing.assert_allclose(out[1], out[0], rtol=1e-12, atol=1e-14)


def test_an_evicted_cache_goes_on_with_true_positions() -> None:
    q, k, v = sequence()
    kv = run("kv_append", KVArrays.empty(KV, 1), k[:, :, :8], v[:, :, :8], np.arange(8)[None])
    kept = np.broadcast_to([0, 3, 6, 7], (1, 3, 4))
    kv = run("kv_gather", kv, kept)
    kv = run("kv_append", kv, k[:, :, 8:], v[:, :, 8:], np.arange(8, 11)[None])
    np.testing.assert_array_equal(np.sort(kv.positions[0, 0][kv.positions[0, 0] >= 0]), [0, 3, 6, 7, 8, 9, 10])
    out = run("kv_attention", q[:, :, 8:], kv, np.arange(8, 11)[None], scale=0.3)
    mask = np.zeros((1, 1, LENGTH, LENGTH), bool)
    mask[..., [0, 3, 6, 7, 8, 9, 10]] = True
    whole = run("attention", q, k, v, mask, scale=0.3, causal=True)
    np.testing.assert_allclose(out, whole[:, :, 8:], rtol=1e-12, atol=1e-14)


def test_evict_by_hand() -> None:
    """Rows [1], [.8, .2], [.1, .3, .6] of attention: with one recent and one heavy slot, key 1 goes."""
    state = KVArrays(np.arange(3.0).reshape(1, 1, 3, 1), np.zeros((1, 1, 3, 1)), np.arange(3)[None, None])
    scores = np.array([[[1.9, 0.5, 0.6]]])
    kept = run("kv_evict", state, scores, keep=2, sinks=0, recent=1)
    np.testing.assert_array_equal(kept.positions, [[[0, 2]]])
    np.testing.assert_array_equal(kept.k[..., 0], [[[0.0, 2.0]]])


def test_evict_protects_sinks_and_recent_and_ignores_empty_slots() -> None:
    positions = np.array([[[0, 1, 2, 3, 4, 5, -1, -1]]])
    state = KVArrays(np.zeros((1, 1, 8, 1)), np.zeros((1, 1, 8, 1)), positions)
    scores = np.array([[[0.0, 0.0, 3.0, 5.0, 0.0, 0.0, 9.0, 9.0]]])
    kept = run("kv_evict", state, scores, keep=4, sinks=1, recent=2)
    np.testing.assert_array_equal(kept.positions, [[[0, 3, 4, 5]]])


def test_evict_keeps_everything_while_there_is_room() -> None:
    _, k, v = sequence()
    kv = run("kv_append", KVArrays.empty(KV, 1), k, v, np.arange(LENGTH)[None])
    kept = run("kv_evict", kv, np.zeros((1, 3, LENGTH)), keep=40)
    np.testing.assert_array_equal(kept.k[:, :, :LENGTH], kv.k)
    np.testing.assert_array_equal(kept.positions[:, :, LENGTH:], -1)
