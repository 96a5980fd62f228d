"""KV states with a tail: what queries see, however a prompt is divided, and the bytes that are allocated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import irx.ops  # noqa: F401  declares the ops
from irx.backends.torch.kernels import find
from irx.ir.opdef import lookup
from irx.ir.types import KVType
from irx.ops.cache import KVArrays
from irx.runtime.kv import KVState, empty_state
from irx.runtime.kv_tailed import TailedPlane

CODES = ["kivi2-4-8", "kivi4-8-8", "kivi2-8-16"]
UNIFORM = [[*range(5)], [5], [6], [*range(7, 30)], [30], [31], [32], [*range(33, 41)]]


def _state(code: str, dims: tuple[int, int] = (5, 8), dtype: str = "f32", batch: int = 2) -> KVState:
    return empty_state(KVType(2, 2, *dims, dtype, "blocked", code=code), batch, torch.device("cpu"))


def _tokens(count: int, seed: int = 0, dims: tuple[int, int] = (5, 8)) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(2, 2, count, d, generator=generator) for d in dims)
    return torch.randn(2, 4, count, dims[0], generator=generator), k, v


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(
    "chunks",
    [
        [[row, row] for row in UNIFORM],
        [[[0, 1, 2, 3], [-1, -1, 0, 1]], [[4], [2]], [[*range(5, 27)], [*range(3, 25)]], [[27, -1], [25, 26]]],
        [[[*range(20)], [*range(20)]], [[12, 13], [12, 13]], [[14], [14]]],  # tokens replaced
    ],
    ids=["uniform", "padded", "replaced"],
)
def test_queries_see_what_the_oracle_says(code: str, chunks: list[list[list[int]]]) -> None:
    state, reference = _state(code), KVArrays.empty(KVType(2, 2, 5, 8, "f32", code=code), 2)
    table = torch.randn(4, 6, generator=torch.Generator().manual_seed(5))
    for number, positions in enumerate(chunks):
        pos = torch.tensor(positions)
        q, k, v = _tokens(pos.shape[1], number)
        if number == 1 and positions[0][0] == 12:
            reference = KVArrays(*(x[:, :, :12] for x in (reference.k, reference.v, reference.positions)), code)
            reference = _coded_tail(state, reference)
        state = find("kv_append")(state, k, v, pos)
        reference = lookup("kv_append").reference(reference, *(x.numpy() for x in (k, v, pos)))
        for how in ({}, {"window": 3}, {"softcap": 2.0}, {"table": table, "sinks": table[:, 0]}):
            extra = {name: how[name] for name in ("table", "sinks") if name in how}
            rest = {name: value for name, value in how.items() if name not in extra}
            out = find("kv_attention")(q, state, pos, *extra.values(), scale=0.5, **rest)
            arrays = [x.numpy() for x in extra.values()]
            expected = lookup("kv_attention").reference(q.numpy(), reference, pos.numpy(), *arrays, scale=0.5, **rest)
            assert np.allclose(out.numpy(), expected, atol=2e-5), (number, how)


def _coded_tail(state: KVState, reference: KVArrays) -> KVArrays:
    """Tokens whose places in the tail others have taken come back as their codes say."""
    state.truncate((12, 12))
    return KVArrays(state.k.numpy()[:, :, :12], state.v.numpy()[:, :, :12], reference.positions, reference.code)


@pytest.mark.parametrize("code", CODES)
def test_a_prompt_may_be_divided_as_one_likes(code: str) -> None:
    """The arrays are equal to the last bit."""
    q, k, v = _tokens(53)
    whole = find("kv_append")(_state(code), k, v, torch.arange(53).expand(2, -1))
    one = find("kv_attention")(q, whole, torch.arange(53).expand(2, -1), scale=0.5)
    for sizes in ([1] * 53, [8, 8, 16, 21], [50, 3], [7, 46]):
        state, start, parts = _state(code), 0, []
        for size in sizes:
            pos = torch.arange(start, start + size).expand(2, -1)
            some = slice(start, start + size)
            state = find("kv_append")(state, k[:, :, some], v[:, :, some], pos)
            parts.append(find("kv_attention")(q[:, :, some], state, pos, scale=0.5))
            start += size
        for name in ("k", "v"):
            assert torch.equal(getattr(state, name), getattr(whole, name))
            for part in ("scale", "zero", "tail"):
                assert torch.equal(state.part(f"{name}_{part}"), whole.part(f"{name}_{part}")), part
        assert torch.allclose(torch.cat(parts, 2), one, atol=1e-5)


@pytest.mark.parametrize("backs", [(1,), (1, 1), (3,), (1, 4), (2, 1, 7)])
def test_forgotten_tokens_leave_the_tail_behind(backs: tuple[int, ...]) -> None:
    """A token whose place in the ring was taken is as its codes say, others as they were, again and again."""
    state, (_, k, v), tail = _state("kivi2-4-8"), _tokens(40), 8
    taken, length = set(), 0

    def append(end: int) -> None:
        pos = torch.arange(length, end).expand(2, -1)
        find("kv_append")(state, k[:, :, length:end], v[:, :, length:end], pos)
        state.settle()
        taken.difference_update(range(length, end))
        taken.update(range(end - tail))

    for back in (0, *backs):
        append(29 if not length else length + 2)
        length = state.lengths[0] - back
        state.truncate((length, length))
        for plane, given in ((state.keys, k), (state.values, v)):
            shown, codes = plane.all((length, length)), plane.read(0, 40)
            for p in range(length - tail, length):
                assert torch.equal(shown[:, :, p], (codes if p in taken else given)[:, :, p]), (back, p)


def test_keys_become_codes_at_multiples_of_the_tail_and_values_one_by_one() -> None:
    """What the next query sees as it is: keys from the last multiple on, the newest values."""
    state = _state("kivi2-4-8")
    q, k, v = _tokens(40)
    for n in range(40):
        pos = torch.full((2, 1), n)
        state = find("kv_append")(state, k[:, :, n : n + 1], v[:, :, n : n + 1], pos)
        found = find("kv_attention")(q[:, :, n : n + 1], state, pos, scale=0.5)
        keys, values = state.keys.read(0, n + 1), state.values.read(0, n + 1)
        keys[:, :, n - n % 8 :] = k[:, :, n - n % 8 : n + 1]
        first = max(0, n - 7)
        values[:, :, first:] = v[:, :, first : n + 1]
        p = torch.softmax(q[:, :, n : n + 1] @ keys.repeat_interleave(2, 1).transpose(2, 3) * 0.5, -1)
        assert torch.allclose(found, p @ values.repeat_interleave(2, 1), atol=1e-5)
        assert torch.equal(state.k[:, :, first : n + 1], k[:, :, first : n + 1])
    assert not torch.allclose(state.k[:, :, :8], k[:, :, :8], atol=0.05)


def test_a_tail_of_all_tokens_is_exact() -> None:
    state, (q, k, v) = _state("kivi2-8-64"), _tokens(64)
    pos = torch.arange(64).expand(2, -1)
    state = find("kv_append")(state, k, v, pos)
    plain = find("kv_append")(empty_state(KVType(2, 2, 5, 8, "f32"), 2, torch.device("cpu")), k, v, pos)
    expected = find("kv_attention")(q, plain, pos, scale=0.5)
    assert torch.allclose(find("kv_attention")(q, state, pos, scale=0.5), expected, atol=1e-6)
    assert torch.equal(state.k[:, :, :64], k)


@pytest.mark.parametrize(
    ("code", "dtype", "share"),
    [("kivi2-32-128", "bf16", 0.21), ("kivi2-32-64", "f32", 0.21), ("kivi4-32-128", "bf16", 0.34)],
)
def test_bytes_of_the_dense_cache_in_bf16(code: str, dtype: str, share: float) -> None:
    """At 8192 tokens, steps, lowest values and tail included; without the tail they are what the type says."""
    kv = KVType(3, 3, 64, 64, dtype, "blocked", code=code)
    state = empty_state(kv, 1, torch.device("cpu"), 8192)
    dense = 2 * 8192 * 3 * 64 * 2
    assert share - 0.02 < state.bytes / dense <= share
    tails = sum(state.part(name).nbytes for name in ("k_tail", "v_tail"))
    assert state.bytes - tails == 8192 * kv.bytes_per_token


def test_copies_are_independent_and_growth_keeps_tokens() -> None:
    state, (_, k, v) = _state("kivi4-8-16"), _tokens(130)
    state = find("kv_append")(state, k[:, :, :60], v[:, :, :60], torch.arange(60).expand(2, -1))
    before = state.k.clone()
    copy = find("kv_append")(state.clone(), k[:, :, 60:], v[:, :, 60:], torch.arange(60, 130).expand(2, -1))
    assert (state.capacity, copy.capacity) == (64, 256)
    assert torch.equal(state.k, before)
    assert torch.allclose(copy.k[:, :, :130], k, atol=0.25)
    assert torch.equal(copy.k[:, :, 114:130], k[:, :, 114:])
    assert copy.lengths == (130, 130)


def test_only_the_tail_of_a_call_stays_in_memory() -> None:
    state, (_, k, v) = _state("kivi2-8-16"), _tokens(100)
    state = find("kv_append")(state, k, v, torch.arange(100).expand(2, -1))
    assert isinstance(state.keys, TailedPlane)
    assert state.keys.recent
    state.settle()
    assert not state.keys.recent


def test_tokens_cannot_be_chosen_one_by_one() -> None:
    with pytest.raises(ValueError, match="kivi2-4-8"):
        _state("kivi2-4-8").take(torch.zeros(2, 2, 1, dtype=torch.long))
