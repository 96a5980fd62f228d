"""KV states by themselves: where tokens go with and without a session, buckets, eviction on top."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import irx.ops  # noqa: F401  declares the ops
from irx.backends.torch.kernels import find
from irx.ir.codes import CODES
from irx.ir.opdef import Array, lookup
from irx.ir.types import KVType
from irx.ops.cache import KVArrays
from irx.runtime.kv import Step, bucket, empty_state, step_of

KV = KVType(2, 2, 4, 3, "f32")
LAYOUTS = [("dense", "f32", 1e-5), ("blocked", "f32", 1e-5), ("blocked", "bf16", 0.03), ("blocked", "i8", 0.05)]
LAYOUTS += [("dense", "i8", 0.05)]
LAYOUTS += [(layout, code, 1e-5) for layout in ("dense", "blocked") for code in CODES]
EVICT = {"keep": 6, "sinks": 1, "recent": 2}


def _stored(layout: str, storage: str) -> KVType:
    """KV in a layout, stored in a dtype or as codes."""
    return replace(KV, layout=layout, **{"code" if storage in CODES else "dtype": storage})


@pytest.mark.parametrize(
    ("lengths", "positions", "expected"),
    [
        ((0, 0), [[0, 1], [0, 1]], Step(0, (2, 2), True)),
        ((5, 5), [[5], [5]], Step(5, (6, 6), True)),
        ((5, 3), [[5], [3]], Step(5, (6, 4), False)),
        ((0, 0), [[-1, 0], [0, 1]], Step(-1, (1, 2), False)),
        ((4, 4), [[2], [2]], Step(2, (4, 4), False)),  # written again, behind it there are more
        ((0,), [[1]], None),
        ((3,), [[3, 5]], None),
        ((3,), [[3, -1, 4]], Step(3, (5,), False)),
    ],
)
def test_steps_from_positions(lengths: tuple[int, ...], positions: list[list[int]], expected: Step | None) -> None:
    assert step_of(lengths, positions) == expected


@pytest.mark.parametrize(("slots", "limit", "size"), [(1, 1000, 64), (65, 1000, 128), (900, 1000, 1000), (70, 60, 70)])
def test_buckets(slots: int, limit: int, size: int) -> None:
    assert bucket(slots, limit) == size


@pytest.mark.parametrize(
    "chunks",
    [
        [[[0, 1, 2], [0, 1, 2]], [[3], [3]]],
        [[[0, 1, 2], [-1, 0, 1]], [[3], [2]], [[4, 5], [3, -1]]],
        [[[0, 1], [0, 1]], [[3], [2]], [[2], [9]]],  # holes: slots carry their positions from then on
        [[[0, 1, 2], [0, 1, 2]], [[1], [2]]],  # tokens replaced
    ],
    ids=["uniform", "padded", "holes", "replaced"],
)
@pytest.mark.parametrize(("layout", "dtype", "tolerance"), LAYOUTS)
def test_appending_and_attending_equal_the_reference(
    chunks: list[list[list[int]]], layout: str, dtype: str, tolerance: float
) -> None:
    generator = np.random.default_rng(0)
    kv = _stored(layout, dtype)
    state, reference = empty_state(kv, 2, torch.device("cpu")), KVArrays.empty(kv, 2)
    for positions in chunks:
        pos = np.array(positions)
        k = generator.standard_normal((2, 2, pos.shape[1], 4)).astype(np.float32)
        v = generator.standard_normal((2, 2, pos.shape[1], 3)).astype(np.float32)
        q = generator.standard_normal((2, 4, pos.shape[1], 4)).astype(np.float32)
        state = find("kv_append")(state, *map(torch.from_numpy, (k, v, pos)))
        reference = lookup("kv_append").reference(reference, k, v, pos)
        for how in ({}, {"window": 2}, {"causal": False}):
            out = find("kv_attention")(torch.from_numpy(q), state, torch.from_numpy(pos), scale=0.5, **how)
            expected = lookup("kv_attention").reference(q, reference, pos, scale=0.5, **how)
            assert np.allclose(out.numpy(), expected, atol=tolerance), (positions, how)


@pytest.mark.parametrize(("layout", "dtype", "tolerance"), LAYOUTS)
def test_slots_keep_their_tokens(layout: str, dtype: str, tolerance: float) -> None:
    """Through growth, a copy, a shorter sequence, and the choice of some slots; rows of unequal length."""
    kv = _stored(layout, dtype)
    tolerance = {"token8": 0.02, "token4": 0.25}.get(dtype, tolerance)
    state = empty_state(kv, 2, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, 2, 70, 4, generator=generator), torch.randn(2, 2, 70, 3, generator=generator)
    rows = torch.arange(70).expand(2, -1)
    state = find("kv_append")(state, k[:, :, :60], v[:, :, :60], rows[:, :60])
    last = torch.stack([rows[0, 60:], torch.tensor([-1, -1, *range(60, 68)])])
    copy = find("kv_append")(state.clone(), k[:, :, 60:], v[:, :, 60:], last)
    assert (state.capacity, copy.capacity) == (64, 128)
    assert copy.lengths == (70, 68)
    assert torch.allclose(copy.k[0, :, :70].float(), k[0], atol=tolerance)
    assert torch.allclose(copy.v[1, :, :60].float(), v[1, :, :60], atol=tolerance)
    assert torch.allclose(copy.v[1, :, 60:68].float(), v[1, :, 62:], atol=tolerance)
    assert torch.allclose(state.v[1, :, :60].float(), v[1, :, :60], atol=tolerance)
    copy.truncate((8, 3))
    assert int((copy.slot_positions() >= 0).sum()) == 2 * 11
    taken = copy.take(torch.tensor([[[2, 0], [1, 2]]] * 2))
    assert torch.allclose(taken.k[0, 1, :2].float(), k[0, 1, [1, 2]], atol=tolerance)
    assert taken.slot_positions()[1, :, :2].tolist() == [[2, 0], [1, 2]]


def test_blocked_parts() -> None:
    """The arrays that kernels read: 16 keys beside each other, pairs of bf16, quads of bytes with an offset of 128."""
    shapes = {
        "f32": ((1, 2, 4, 5, 16, 1), (1, 2, 64, 16, 1, 1)),
        "bf16": ((1, 2, 4, 3, 16, 2), (1, 2, 32, 16, 2, 1)),
        "i8": ((1, 2, 4, 2, 16, 4), (1, 2, 64, 16, 1, 1)),
    }
    for dtype, (keys, values) in shapes.items():
        state = empty_state(KVType(2, 2, 5, 3, dtype, "blocked"), 1, torch.device("cpu"), 50)
        k, v = torch.randn(1, 2, 50, 5), torch.randn(1, 2, 50, 3)
        find("kv_append")(state, k, v, torch.arange(50)[None])
        part = state.part("k")
        assert (tuple(part.shape), tuple(state.part("v").shape)) == (keys, values)
        assert part.data_ptr() % 64 == 0
        slot, channel, group = 35, 3, keys[-1]
        found = float(part[0, 1, slot // 16, channel // group, slot % 16, channel % group])
        if dtype == "i8":
            found = (found - 128) * float(state.part("k_scale")[0, 1, slot])
        assert abs(found - float(k[0, 1, slot, channel])) < 0.03
    with pytest.raises(KeyError):
        empty_state(KV, 1, torch.device("cpu")).part("k_scale")


def test_evicted_states_go_on() -> None:
    """Tokens after an eviction find their slots, and attention sees what the reference sees."""
    generator = np.random.default_rng(1)
    state, reference = empty_state(KV, 1, torch.device("cpu")), KVArrays.empty(KV, 1)
    for start in range(0, 12, 3):
        pos = np.arange(start, start + 3)[None]
        k = generator.standard_normal((1, 2, 3, 4)).astype(np.float32)
        v = generator.standard_normal((1, 2, 3, 3)).astype(np.float32)
        q = generator.standard_normal((1, 4, 3, 4)).astype(np.float32)
        scores = generator.random((1, 2, 12)).astype(np.float32)  # of the tokens, whatever their slots
        state = find("kv_append")(state, *map(torch.from_numpy, (k, v, pos)))
        reference = lookup("kv_append").reference(reference, k, v, pos)
        own = torch.from_numpy(by_slot(scores, state.slot_positions().numpy()))
        state = find("kv_evict")(state, own, **EVICT)
        reference = lookup("kv_evict").reference(reference, by_slot(scores, reference.positions), **EVICT)
        out = find("kv_attention")(torch.from_numpy(q), state, torch.from_numpy(pos), scale=0.5)
        expected = lookup("kv_attention").reference(q, reference, pos, scale=0.5)
        assert np.allclose(out.numpy(), expected, atol=1e-5)
    assert int((state.slot_positions() >= 0).sum()) == 2 * EVICT["keep"]


def by_slot(scores: Array, positions: Array) -> Array:
    """The score of the token in each slot."""
    return np.take_along_axis(scores, np.maximum(positions, 0), axis=2)


def test_a_copy_is_independent() -> None:
    state = empty_state(KV, 1, torch.device("cpu"))
    tokens = (torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 3))
    state = find("kv_append")(state, *tokens, torch.tensor([[0]]))
    copy = state.clone()
    find("kv_append")(copy, *(t * 2 for t in tokens), torch.tensor([[1]]))
    assert state.lengths == (1,)
    assert copy.lengths == (2,)
    assert float(state.k[0, 0, 1].sum()) == 0
    assert state.bytes == 64 * 2 * 7 * 4


@pytest.mark.parametrize("layout", ["dense", "blocked"])
@pytest.mark.parametrize(("code", "share"), [("token8", 68 / 128), ("token4", 36 / 128)])
def test_codes_take_the_bytes_they_say(layout: str, code: str, share: float) -> None:
    """Steps and lowest values included, of the bytes of bf16."""
    dense = empty_state(KVType(3, 3, 64, 64, "bf16"), 2, torch.device("cpu"), 128)
    coded = empty_state(KVType(3, 3, 64, 64, "bf16", layout, code=code), 2, torch.device("cpu"), 128)
    assert coded.bytes == share * dense.bytes
    assert coded.bytes == 2 * 128 * KVType(3, 3, 64, 64, "bf16", layout, code=code).bytes_per_token


@pytest.mark.parametrize("layout", ["dense", "blocked"])
def test_chosen_slots_stay_codes(layout: str) -> None:
    """What is taken from a state is not rounded a second time, and is no larger."""
    state = empty_state(_stored(layout, "token4"), 1, torch.device("cpu"))
    tokens = (torch.randn(1, 2, 64, 4), torch.randn(1, 2, 64, 3))
    state = find("kv_append")(state, *tokens, torch.arange(64)[None])
    index = torch.randperm(64, generator=torch.Generator().manual_seed(2)).expand(1, 2, 64)
    taken = state.take(index)
    assert torch.equal(taken.k, state.k.gather(2, index[..., None].expand(-1, -1, -1, 4)))
    assert torch.equal(taken.v, state.v.gather(2, index[..., None].expand(-1, -1, -1, 3)))
    assert taken.keys.bytes == state.keys.bytes
