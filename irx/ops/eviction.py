"""Which tokens of a cache stay: scores, and what is kept by them, in one op, as only a state knows its slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from irx.errors import TypeRuleError
from irx.ir.dims import Dim
from irx.ir.opdef import Array, OpDef, tensor_bytes
from irx.ir.types import KVType, TensorType, Type
from irx.ops.attend import logits_of, visible_keys
from irx.ops.attention import divisible
from irx.ops.cache import KVArrays, kv_bytes, kv_length
from irx.ops.numerics import top_indices
from irx.ops.shapes import need, need_float, need_integer, need_rank, need_shape

SCORES = ("attention", "norm", "age")


def kept_count(length: int, share: float, keep: int) -> int:
    """How many of `length` tokens stay: ceil(share * length), but at least `keep`; all where there are no more."""
    return min(length, max(keep, -int(-length * Fraction(share).limit_denominator(10_000) // 1)))


class KvKeep(OpDef):
    """The cache with the tokens of each row and KV head that score best, in the order of their positions.

    Of a row of L tokens so far max(`keep`, ceil(`share` * L)) stay, and all while no more are held. Scores, `by`:
    attention: what the last `rows` queries (0: all) of q [B, H, S, D] at pos i64[B, S] pay a token, as `scale`,
    `softcap` and `sinks` [H] make it, summed over queries and the heads of a group; norm: minus the length of its key;
    age: its position. They are averaged over `pool` neighbours, behind both ends there are zeros. The `first` tokens by
    position always stay, and the last `recent` or `half` of those that stay, whichever are more; before pooling these
    last ones count 0. Ties go to the older token. (SnapKV, Li et al. 2024, arXiv:2404.14469; H2O, Zhang et al. 2023,
    arXiv:2306.14048; norms: Devoto et al. 2024, arXiv:2406.11430.)
    """

    name = "kv_keep"

    @staticmethod
    def infer(
        kv: KVType,
        q: TensorType | None = None,
        pos: TensorType | None = None,
        sinks: TensorType | None = None,
        *,
        by: str,
        share: float = 0.0,
        keep: int = 0,
        first: int = 0,
        recent: int = 0,
        half: float = 0.0,
        rows: int = 0,
        pool: int = 1,
        scale: float = 1.0,
        softcap: float | None = None,
    ) -> KVType:
        need(by in SCORES, f"by must be one of {', '.join(SCORES)}, not {by!r}")
        need(kv.heads == kv.value_heads, f"keys and values must travel together, but {kv} has different heads")
        need(0 <= share <= 1 and 0 <= half <= 1, f"share {share} and half {half} must be between 0 and 1")
        need(first >= 0 and recent >= 0 and first + recent <= keep, f"{first} + {recent} protected tokens of {keep}")
        need(pool > 0 and pool % 2 == 1, f"pool must be odd and positive, not {pool}")
        need(rows >= 0, f"rows must not be negative: {rows}")
        need((by == "attention") == (q is not None), "attention needs queries, other scores none")
        if q is not None:
            need_float(q, "q")
            need_rank(q, 4, "q")
            need(q.shape[3] == kv.k_dim and divisible(q.shape[1], kv.heads), f"q {q} does not fit the keys of {kv}")
            need(pos is not None, "queries need their positions")
            assert pos is not None
            need_integer(pos, "pos")
            need_shape(pos, (q.shape[0], q.shape[2]), "pos")
        if sinks is not None:
            need(q is not None, "sinks belong to queries")
            need_rank(sinks, 1, "sinks")
        return replace(kv, capacity=None)

    @staticmethod
    def reference(
        kv: KVArrays,
        q: Array | None = None,
        pos: Array | None = None,
        sinks: Array | None = None,
        *,
        by: str,
        share: float = 0.0,
        keep: int = 0,
        first: int = 0,
        recent: int = 0,
        half: float = 0.0,
        rows: int = 0,
        pool: int = 1,
        scale: float = 1.0,
        softcap: float | None = None,
    ) -> KVArrays:
        kv = _in_order(kv)
        lengths = kv.positions.max(axis=(1, 2), initial=-1) + 1
        held = (kv.positions >= 0).sum(2).max(1, initial=0)
        counts = np.minimum(held, [kept_count(int(n), share, keep) for n in lengths])
        if not (counts < held).any():
            return kv
        newest = np.maximum(recent, (half * counts).astype(int))
        protected = (kv.positions < first) | (kv.positions >= (lengths - newest)[:, None, None])
        if by == "attention":
            assert q is not None and pos is not None, "attention needs queries"
            scores = _received(kv, q, pos, sinks, rows or pos.shape[1], lengths, scale, softcap)
        else:
            scores = -np.sqrt((kv.k**2).sum(-1)) if by == "norm" else kv.positions.astype(float)
        late = kv.positions >= (lengths - newest)[:, None, None]
        scores = _pooled(np.where(late | (kv.positions < 0), 0, scores), pool)
        ranked = np.where(kv.positions < 0, -np.inf, np.where(protected, np.inf, scores))
        chosen = top_indices(ranked, int(counts.max()))
        chosen = np.where(np.arange(chosen.shape[2]) < counts[:, None, None], chosen, kv.positions.shape[2])
        index = np.sort(chosen, axis=2)
        made = kv.take(np.minimum(index, kv.positions.shape[2] - 1))
        made.positions[index == kv.positions.shape[2]] = -1
        return made

    @staticmethod
    def flops(
        kv: KVType,
        q: TensorType | None = None,
        pos: TensorType | None = None,
        sinks: TensorType | None = None,
        *,
        by: str,
        share: float = 0.0,
        keep: int = 0,
        first: int = 0,
        recent: int = 0,
        half: float = 0.0,
        rows: int = 0,
        pool: int = 1,
        scale: float = 1.0,
        softcap: float | None = None,
    ) -> Dim:
        if q is None:
            return 2 * kv.heads * kv.k_dim * kv_length(kv)
        return q.shape[0] * q.shape[1] * (rows or q.shape[2]) * kv_length(kv) * (2 * kv.k_dim + 4)

    @classmethod
    def bytes(cls, operands: Sequence[Type | None], results: Sequence[Type]) -> Dim:
        """The keys are read once for the scores; what stays is read and written."""
        kv, kept, q = operands[0], results[0], operands[1] if len(operands) > 1 else None
        if not (isinstance(kv, KVType) and isinstance(kept, KVType)):
            raise TypeRuleError("takes a KV state")
        queries = tensor_bytes(q) if isinstance(q, TensorType) else 0
        batch = q.shape[0] if isinstance(q, TensorType) else 1
        return queries + kv_bytes(kv, batch) + 2 * kv_bytes(kept, batch)


def _in_order(kv: KVArrays) -> KVArrays:
    """Slots in the order of their tokens' positions, empty ones last."""
    behind = np.where(kv.positions < 0, np.iinfo(np.int64).max, kv.positions)
    return kv.take(np.argsort(behind, axis=2, kind="stable"))


def _received(
    kv: KVArrays,
    q: Array,
    pos: Array,
    sinks: Array | None,
    rows: int,
    lengths: Array,
    scale: float,
    softcap: float | None,
) -> Array:
    """The attention that each slot gets from the last `rows` tokens of its row: [B, G, T]."""
    found = np.zeros(kv.positions.shape)
    batch, heads, count, _ = q.shape
    for b, h, i in np.ndindex(batch, heads, count):
        at, g = int(pos[b, i]), h * kv.k.shape[1] // heads
        if at < 0 or at < lengths[b] - rows:
            continue
        seen = visible_keys(at, kv.positions[b, g], True, None)
        logits = logits_of(q[b, h, i], kv.k[b, g][seen], scale, softcap, None)
        top = max(logits.max(), -np.inf if sinks is None else float(sinks[h]))
        p = np.exp(logits - top)
        found[b, g][seen] += p / (p.sum() + (0.0 if sinks is None else np.exp(float(sinks[h]) - top)))
    return found


def _pooled(scores: Array, width: int) -> Array:
    """The mean of each score and its neighbours."""
    half = width // 2
    padded = np.pad(scores, ((0, 0), (0, 0), (half, half)))
    return np.asarray(np.lib.stride_tricks.sliding_window_view(padded, width, axis=2).mean(3))
