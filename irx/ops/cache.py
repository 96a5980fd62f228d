"""Ops on the KV cache of one attention site. The state is a value: every op that changes it returns a new one.

A state holds, for every row of the batch and KV head, slots of a key, a value and the position of their token in the
sequence (-1: empty). Attention compares positions, never slot numbers, so an evicted or reordered cache keeps working.
A cache that was never evicted has the token of position p in slot p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from irx.errors import TypeRuleError
from irx.ir.codes import tailed
from irx.ir.dims import Dim, minimum, symbol
from irx.ir.opdef import Array, OpDef, tensor_bytes
from irx.ir.types import KVType, TensorType, Type
from irx.ops.attend import logits_of, visible_keys, weigh
from irx.ops.attention import attention_flops, divisible
from irx.ops.numerics import top_indices
from irx.ops.precision import RoundTokens
from irx.ops.shapes import need, need_float, need_integer, need_rank, need_shape
from irx.ops.tailed import Tailed


@dataclass
class KVArrays:
    """A KV state of the references: k [B, G, T, D], v [B, G, T, Dv], positions [B, G, T] integers, -1 = empty slot.

    With a `code`, keys and values are rounded as that code does it, when they are appended; with one that has a tail
    they are kept as they are, and rounded for the queries that see them as codes.
    """

    k: Array
    v: Array
    positions: Array
    code: str | None = None

    @staticmethod
    def empty(kv: KVType, batch: int, capacity: int = 0) -> KVArrays:
        """A state without tokens, in float64."""
        return KVArrays(
            np.zeros((batch, kv.heads, capacity, kv.k_dim)),
            np.zeros((batch, kv.value_heads, capacity, kv.v_dim)),
            np.full((batch, kv.heads, capacity), -1),
            kv.code,
        )

    def take(self, index: Array) -> KVArrays:
        """The slots `index` [B, G, K] of every row and head."""
        return KVArrays(
            np.take_along_axis(self.k, index[..., None], axis=2),
            np.take_along_axis(self.v, index[..., None], axis=2),
            np.take_along_axis(self.positions, index, axis=2),
            self.code,
        )

    def grown(self, capacity: int) -> KVArrays:
        """A copy with room for at least `capacity` tokens."""
        more = max(0, capacity - self.positions.shape[2])
        wide = ((0, 0), (0, 0), (0, more), (0, 0))
        positions = np.pad(self.positions, wide[:3], constant_values=-1)
        return KVArrays(np.pad(self.k, wide), np.pad(self.v, wide), positions, self.code)

    def stored(self, tokens: Array) -> Array:
        """Keys or values [..., D] as the state keeps them."""
        if self.code is None or tailed(self.code) is not None:
            return tokens
        return RoundTokens.reference(tokens, code=self.code)


def kv_length(kv: KVType) -> Dim:
    """How many tokens to charge for: the capacity, or `T` where the runtime chooses it, of which some may be gone."""
    length = symbol("T") if kv.capacity is None else kv.capacity
    if kv.window is not None:
        return minimum(length, kv.window + kv.sinks)
    share = Fraction(kv.kept or 1).limit_denominator(1000)
    return length if share == 1 else (length * share.numerator + (share.denominator - 1)) // share.denominator


def kv_bytes(kv: KVType, batch: Dim) -> Dim:
    """Bytes of a whole state for `batch` rows."""
    return batch * kv_length(kv) * int(kv.bytes_per_token)


def _check_positions(pos: TensorType, batch: Dim, rows: Dim) -> None:
    need_integer(pos, "pos")
    need_shape(pos, (batch, rows), "pos")


class KvAppend(OpDef):
    """The cache with new tokens: k [B, G, S, D], v [B, G, S, Dv], at positions pos i64[B, S] (-1 = padding, dropped).

    A token goes to the slot that holds its position already, else to the slot of that number if it is empty, else to
    the first empty slot. k and v have the dtype of the cache, which rounds them if it has a code. `slots` tells kernels
    where that is; it changes nothing.
    """

    name = "kv_append"

    @staticmethod
    def infer(kv: KVType, k: TensorType, v: TensorType, pos: TensorType, slots: TensorType | None = None) -> KVType:
        need_rank(k, 4, "k")
        need_rank(v, 4, "v")
        batch, rows = k.shape[0], k.shape[2]
        need_shape(k, (batch, kv.heads, rows, kv.k_dim), "k")
        need_shape(v, (batch, kv.value_heads, rows, kv.v_dim), "v")
        _check_positions(pos, batch, rows)
        if slots is not None:
            need_shape(slots, pos.shape, "slots")
        return kv

    @staticmethod
    def reference(kv: KVArrays, k: Array, v: Array, pos: Array, slots: Array | None = None) -> KVArrays:
        state = kv.grown(0)
        k, v = state.stored(k), state.stored(v)
        for b, s in np.ndindex(*np.shape(pos)):
            if pos[b, s] < 0:
                continue
            for g in range(k.shape[1]):
                slot = _slot(state.positions[b, g], int(pos[b, s]))
                state = state.grown(slot + 1)
                state.k[b, g, slot] = k[b, g, s]
                state.v[b, g, slot] = v[b, g, s]
                state.positions[b, g, slot] = pos[b, s]
        return state

    @staticmethod
    def flops(kv: KVType, k: TensorType, v: TensorType, pos: TensorType, slots: TensorType | None = None) -> Dim:
        return 0

    @classmethod
    def bytes(cls, operands: Sequence[Type | None], results: Sequence[Type]) -> Dim:
        """The new tokens are read and written; the rest of the state stays where it is."""
        return sum((2 * tensor_bytes(x) for x in operands[1:3] if isinstance(x, TensorType)), start=0)


def _slot(positions: Array, position: int) -> int:
    """Where the token of `position` goes among slots that hold `positions`."""
    (held,) = np.nonzero(positions == position)
    if held.size:
        return int(held[0])
    if position >= positions.size or positions[position] < 0:
        return position
    (free,) = np.nonzero(positions < 0)
    return int(free[0]) if free.size else positions.size


class KvAttention(OpDef):
    """Attention of q [B, H, S, D] at positions pos i64[B, S] to the tokens of a cache: [B, H, S, Dv] in q's dtype.

    A query at position p sees the slots of positions j <= p (all of them unless `causal`), and with `window` w those
    with p - j < w or j < `first`; rows at pos -1 are padding and give 0. `table` [H, L] adds
    table[h, clamp(p - j, 0, L - 1)] to the logits; sinks [H], scale and softcap as in `attention`. `slots` i64[B, S]
    tells kernels in which slots the queries' own tokens are, where all others are in order before them; it changes
    nothing.
    """

    name = "kv_attention"

    @staticmethod
    def infer(
        q: TensorType,
        kv: KVType,
        pos: TensorType,
        table: TensorType | None = None,
        sinks: TensorType | None = None,
        slots: TensorType | None = None,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        causal: bool = True,
        first: int = 0,
    ) -> TensorType:
        need_rank(q, 4, "q")
        need_float(q, "q")
        need(q.shape[3] == kv.k_dim, f"q {q} does not fit the keys of {kv}")
        for heads in (kv.heads, kv.value_heads):
            need(divisible(q.shape[1], heads), f"{q.shape[1]} query heads are not a multiple of {heads} KV heads")
        _check_positions(pos, q.shape[0], q.shape[2])
        if table is not None:
            need(table.rank == 2 and table.shape[0] == q.shape[1], f"table must be [{q.shape[1]}, L], not {table}")
        if sinks is not None:
            need_shape(sinks, q.shape[1:2], "sinks")
        if slots is not None:
            need_shape(slots, pos.shape, "slots")
        return q.with_shape(*q.shape[:3], kv.v_dim)

    @staticmethod
    def reference(
        q: Array,
        kv: KVArrays,
        pos: Array,
        table: Array | None = None,
        sinks: Array | None = None,
        slots: Array | None = None,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        causal: bool = True,
        first: int = 0,
    ) -> Array:
        batch, heads, rows, _ = q.shape
        out = np.zeros((batch, heads, rows, kv.v.shape[3]))
        code = tailed(kv.code)
        shown = None if code is None else Tailed(kv.k, kv.v, code)
        for b, h, i in np.ndindex(batch, heads, rows):
            at = int(pos[b, i])
            if at < 0:
                continue
            g, value_head = h * kv.k.shape[1] // heads, h * kv.v.shape[1] // heads
            slots = kv.positions[b, g]
            seen = visible_keys(at, slots, causal, window)
            seen |= visible_keys(at, np.where(slots < first, slots, -1), causal, None)
            bias = None if table is None else table[h][np.clip(at - slots[seen], 0, table.shape[1] - 1)]
            places = (b, g), (b, value_head)
            keys, values = (kv.k[b, g], kv.v[b, value_head]) if shown is None else shown.seen_at(at, *places)
            logits = logits_of(q[b, h, i], keys[seen], scale, softcap, bias)
            sink = None if sinks is None else float(sinks[h])
            out[b, h, i] = weigh(logits, values[seen], sink)[0]
        return out

    @staticmethod
    def flops(
        q: TensorType,
        kv: KVType,
        pos: TensorType,
        table: TensorType | None = None,
        sinks: TensorType | None = None,
        slots: TensorType | None = None,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        causal: bool = True,
        first: int = 0,
    ) -> Dim:
        keys = kv_length(kv) if window is None else minimum(kv_length(kv), window)
        return attention_flops(q.shape, keys, kv.v_dim)

    @classmethod
    def bytes(cls, operands: Sequence[Type | None], results: Sequence[Type]) -> Dim:
        """Tensors as usual, and the whole cache once."""
        q, kv = operands[0], operands[1]
        if not (isinstance(q, TensorType) and isinstance(kv, KVType)):
            raise TypeRuleError("takes a tensor and a KV state")
        return super().bytes(operands, results) + kv_bytes(kv, q.shape[0])


class KvGather(OpDef):
    """The cache with only the slots index i64[B, G, K], in that order; their positions travel with them.

    The capacity becomes K.
    """

    name = "kv_gather"
    copies_state = True

    @staticmethod
    def infer(kv: KVType, index: TensorType) -> KVType:
        need_integer(index, "index")
        need_rank(index, 3, "index")
        _check_one_head_count(kv)
        need(index.shape[1] == kv.heads, f"index {index} needs {kv.heads} heads")
        return replace(kv, capacity=index.shape[2])

    @staticmethod
    def reference(kv: KVArrays, index: Array) -> KVArrays:
        return kv.take(np.asarray(index))

    @staticmethod
    def flops(kv: KVType, index: TensorType) -> Dim:
        return 0

    @classmethod
    def bytes(cls, operands: Sequence[Type | None], results: Sequence[Type]) -> Dim:
        """The slots that stay are read and written."""
        kv, index = operands
        if not (isinstance(index, TensorType) and isinstance(kv, KVType)):
            raise TypeRuleError("takes a KV state and a tensor")
        kept = index.shape[0] * index.shape[2] * int(kv.bytes_per_token)
        return 2 * kept + tensor_bytes(index)


def _check_one_head_count(kv: KVType) -> None:
    need(kv.heads == kv.value_heads, f"slots of keys and values must travel together, but {kv} has different heads")


class KvEvict(OpDef):
    """The cache with the `keep` best tokens per row and KV head, by scores f32[B, G, T], in the order of their slots.

    The first `sinks` and the last `recent` tokens by position always stay; ties go to the lower slot; nothing happens
    while there are no more than `keep` slots. (H2O, Zhang et al. 2023, arXiv:2306.14048; SnapKV, arXiv:2404.14469.)
    """

    name = "kv_evict"

    @staticmethod
    def infer(kv: KVType, scores: TensorType, *, keep: int, sinks: int = 4, recent: int = 32) -> KVType:
        need_float(scores, "scores")
        need_rank(scores, 3, "scores")
        _check_one_head_count(kv)
        need(scores.shape[1] == kv.heads, f"scores {scores} need {kv.heads} heads")
        need(0 <= sinks + recent <= keep, f"{sinks} sinks and {recent} recent tokens do not fit into {keep}")
        return replace(kv, capacity=keep)

    @staticmethod
    def reference(kv: KVArrays, scores: Array, *, keep: int, sinks: int = 4, recent: int = 32) -> KVArrays:
        if kv.positions.shape[2] <= keep:
            return kv.grown(keep)
        positions = kv.positions
        length = positions.max(axis=2, keepdims=True) + 1
        protected = (positions < sinks) | (positions >= length - recent)
        ranked = np.where(protected, np.inf, scores)
        ranked = np.where(positions < 0, -np.inf, ranked)
        return kv.take(np.sort(top_indices(ranked, keep), axis=2))

    @staticmethod
    def flops(kv: KVType, scores: TensorType, *, keep: int, sinks: int = 4, recent: int = 32) -> Dim:
        return 4 * scores.elements

    @classmethod
    def bytes(cls, operands: Sequence[Type | None], results: Sequence[Type]) -> Dim:
        """The scores are read; the slots that stay are read and written."""
        scores, kept = operands[1], results[0]
        if not (isinstance(scores, TensorType) and isinstance(kept, KVType)):
            raise TypeRuleError("takes a KV state and a tensor")
        return tensor_bytes(scores) + 2 * kv_bytes(kept, scores.shape[0])
