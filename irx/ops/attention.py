"""Attention over whole sequences, its log-sum-exp, the merge of partial results, and statistics of keys."""

from __future__ import annotations

from typing import Any

import numpy as np

from irx.ir.dims import Dim, minimum
from irx.ir.opdef import Array, OpDef
from irx.ir.types import TensorType
from irx.ops.attend import logits_of, merge, visible_keys, weigh
from irx.ops.shapes import (
    Shape,
    broadcasts_to,
    need,
    need_float,
    need_rank,
    need_same_dtype,
    need_shape,
)


def divisible(heads: Dim, groups: Dim) -> bool:
    """False when `groups` is known not to divide `heads`."""
    return not (isinstance(heads, int) and isinstance(groups, int)) or heads % groups == 0


def check_operands(q: TensorType, k: TensorType, v: TensorType) -> Shape:
    """[B, H, S, T], for q [B, H, S, D], k [B, G, T, D], v [B, G, T, Dv] of one float dtype."""
    for tensor, name in ((q, "q"), (k, "k"), (v, "v")):
        need_rank(tensor, 4, name)
        need_float(tensor, name)
    need_same_dtype("q, k and v", q, k, v)
    need(k.shape[:3] == v.shape[:3], f"k {k} and v {v} differ in batch, heads or length")
    need(q.shape[0] == k.shape[0], f"q {q} and k {k} differ in their batch")
    need(q.shape[3] == k.shape[3], f"q {q} and k {k} differ in their last axis")
    need(divisible(q.shape[1], k.shape[1]), f"{q.shape[1]} query heads are not a multiple of {k.shape[1]} KV heads")
    return (*q.shape[:3], k.shape[2])


def check_extras(full: Shape, mask: TensorType | None, bias: TensorType | None, sinks: TensorType | None) -> None:
    """mask bool and bias float broadcast to [B, H, S, T]; sinks are [H]."""
    if mask is not None:
        need(mask.dtype == "bool", f"mask must be boolean, not {mask}")
        broadcasts_to(mask.shape, full, "mask")
    if bias is not None:
        need_float(bias, "bias")
        broadcasts_to(bias.shape, full, "bias")
    if sinks is not None:
        need_float(sinks, "sinks")
        need_shape(sinks, full[1:2], "sinks")


def _reference(
    q: Array, k: Array, v: Array, mask: Array | None, bias: Array | None, sinks: Array | None, **how: Any
) -> tuple[Array, Array]:
    batch, heads, rows, _ = q.shape
    full = (batch, heads, rows, k.shape[2])
    group = heads // k.shape[1]
    mask = None if mask is None else np.broadcast_to(mask, full)
    bias = None if bias is None else np.broadcast_to(bias, full)
    out = np.zeros((batch, heads, rows, v.shape[3]))
    lse = np.zeros((batch, heads, rows))
    for b, h, i in np.ndindex(batch, heads, rows):
        seen = visible_keys(i, np.arange(k.shape[2]), how["causal"], how["window"])
        seen = seen if mask is None else seen & mask[b, h, i]
        extra = None if bias is None else bias[b, h, i][seen]
        logits = logits_of(q[b, h, i], k[b, h // group][seen], how["scale"], how["softcap"], extra)
        sink = None if sinks is None else float(sinks[h])
        out[b, h, i], lse[b, h, i] = weigh(logits, v[b, h // group][seen], sink)
    return out, lse


class Attention(OpDef):
    """softmax(scale * q k^T) v with grouped heads: q [B, H, S, D], k [B, G, T, D], v [B, G, T, Dv] give [B, H, S, Dv].

    Head h reads KV head h // (H / G). All of one float dtype; logits and softmax are f32. In order: logits are scaled,
    capped (`softcap` c: c * tanh(x / c)), and `bias` is added, float, broadcast to [B, H, S, T]. Row i sees key j where
    `mask` (bool, broadcast to [B, H, S, T]) is true, with `causal` j <= i, with `window` w i - j < w. `sinks` [H] is an
    extra logit per head that takes probability and adds nothing. A row that sees nothing gives 0.
    (Vaswani et al. 2017, arXiv:1706.03762; grouped heads: Ainslie et al. 2023, arXiv:2305.13245.)
    """

    name = "attention"

    @staticmethod
    def infer(
        q: TensorType,
        k: TensorType,
        v: TensorType,
        mask: TensorType | None = None,
        bias: TensorType | None = None,
        sinks: TensorType | None = None,
        *,
        scale: float,
        causal: bool = False,
        window: int | None = None,
        softcap: float | None = None,
    ) -> TensorType:
        check_extras(check_operands(q, k, v), mask, bias, sinks)
        need(window is None or window > 0, f"window must be positive, not {window}")
        return q.with_shape(*q.shape[:3], v.shape[3])

    @staticmethod
    def reference(
        q: Array,
        k: Array,
        v: Array,
        mask: Array | None = None,
        bias: Array | None = None,
        sinks: Array | None = None,
        *,
        scale: float,
        causal: bool = False,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Array:
        how = {"scale": scale, "causal": causal, "window": window, "softcap": softcap}
        return _reference(q, k, v, mask, bias, sinks, **how)[0]

    @staticmethod
    def flops(
        q: TensorType,
        k: TensorType,
        v: TensorType,
        mask: TensorType | None = None,
        bias: TensorType | None = None,
        sinks: TensorType | None = None,
        *,
        scale: float,
        causal: bool = False,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Dim:
        keys = k.shape[2] if window is None else minimum(k.shape[2], window)
        return attention_flops(q.shape, keys, v.shape[3])


def attention_flops(q: Shape, keys: Dim, value_channels: Dim) -> Dim:
    """Two products and five operations a logit; the keys that causality hides are counted."""
    logits = q[0] * q[1] * q[2] * keys
    return 2 * logits * (q[3] + value_channels) + 5 * logits


class AttentionLse(OpDef):
    """`attention` that also returns its log-sum-exp: (out [B, H, S, Dv], lse f32[B, H, S]).

    Operands and attributes are those of `attention`. The log-sum-exp includes sinks and biases; it is -inf where a row
    sees nothing. With it partial results merge: see `merge_attention`.
    """

    name = "attention_lse"

    @staticmethod
    def infer(
        q: TensorType,
        k: TensorType,
        v: TensorType,
        mask: TensorType | None = None,
        bias: TensorType | None = None,
        sinks: TensorType | None = None,
        *,
        scale: float,
        causal: bool = False,
        window: int | None = None,
        softcap: float | None = None,
    ) -> tuple[TensorType, TensorType]:
        how: dict[str, Any] = {"scale": scale, "causal": causal, "window": window, "softcap": softcap}
        return Attention.infer(q, k, v, mask, bias, sinks, **how), TensorType(q.shape[:3], "f32")

    @staticmethod
    def reference(
        q: Array,
        k: Array,
        v: Array,
        mask: Array | None = None,
        bias: Array | None = None,
        sinks: Array | None = None,
        *,
        scale: float,
        causal: bool = False,
        window: int | None = None,
        softcap: float | None = None,
    ) -> tuple[Array, Array]:
        how = {"scale": scale, "causal": causal, "window": window, "softcap": softcap}
        return _reference(q, k, v, mask, bias, sinks, **how)

    flops = Attention.flops


class MergeAttention(OpDef):
    """Two partial attentions over disjoint keys as one: (o1, lse1, o2, lse2) give (o, lse).

    o1, o2 [B, H, S, D], lse1, lse2 f32[B, H, S]: o = (e^lse1 o1 + e^lse2 o2) / (e^lse1 + e^lse2), computed without
    overflow. A part that saw nothing has lse -inf and weighs nothing; if neither saw anything, o is 0.
    (Dao et al. 2022, arXiv:2205.14135; split over keys: Dao et al. 2023, Flash-Decoding.)
    """

    name = "merge_attention"

    @staticmethod
    def infer(o1: TensorType, lse1: TensorType, o2: TensorType, lse2: TensorType) -> tuple[TensorType, TensorType]:
        need_float(o1, "o1")
        need(o1 == o2, f"the outputs must have one type, not {o1} and {o2}")
        need_shape(lse1, o1.shape[:-1], "lse1")
        need_shape(lse2, o1.shape[:-1], "lse2")
        return o1, lse1

    reference = staticmethod(merge)

    @staticmethod
    def flops(o1: TensorType, lse1: TensorType, o2: TensorType, lse2: TensorType) -> Dim:
        return 3 * o1.elements + 8 * lse1.elements


_OVER_ROWS = ("sum", "max")
_OVER_HEADS = ("sum", "mean", "max")


class AttentionStats(OpDef):
    """How much attention each key gets, from a second pass: (c f32[B, G, T], n i64[T]).

    q [B, H, S, D], k [B, G, T, D], lse f32[B, H, S] of the attention itself. c_j reduces exp(s_qj - lse_q) over the
    last `rows` query rows (0: all) by `reduce` (sum or max), and over the heads of a group by `group` (sum, mean or
    max); n_j is the number of those rows that may see key j. (SnapKV, Li et al. 2024, arXiv:2404.14469.)
    """

    name = "attention_stats"

    @staticmethod
    def infer(
        q: TensorType,
        k: TensorType,
        lse: TensorType,
        *,
        rows: int = 0,
        reduce: str = "sum",
        scale: float,
        causal: bool = False,
        group: str = "sum",
    ) -> tuple[TensorType, TensorType]:
        need(reduce in _OVER_ROWS, f"reduce must be one of {', '.join(_OVER_ROWS)}, not {reduce!r}")
        need(group in _OVER_HEADS, f"group must be one of {', '.join(_OVER_HEADS)}, not {group!r}")
        need(rows >= 0, f"rows must not be negative: {rows}")
        check_operands(q, k, k)
        need_shape(lse, q.shape[:3], "lse")
        return TensorType(k.shape[:3], "f32"), TensorType(k.shape[2:3], "i64")

    @staticmethod
    def reference(
        q: Array,
        k: Array,
        lse: Array,
        *,
        rows: int = 0,
        reduce: str = "sum",
        scale: float,
        causal: bool = False,
        group: str = "sum",
    ) -> tuple[Array, Array]:
        batch, heads, length, _ = q.shape
        chosen = range(max(0, length - rows) if rows else 0, length)
        places = np.arange(k.shape[2])
        per_head = np.zeros((batch, heads, k.shape[2]))
        for b, h, i in ((b, h, i) for b, h in np.ndindex(batch, heads) for i in chosen):
            seen = visible_keys(i, places, causal, None)
            p = np.exp(logits_of(q[b, h, i], k[b, h // (heads // k.shape[1])], scale, None, None) - lse[b, h, i]) * seen
            old = per_head[b, h]
            per_head[b, h] = old + p if reduce == "sum" else np.maximum(old, p)
        grouped = per_head.reshape(batch, k.shape[1], -1, k.shape[2])
        count = sum((visible_keys(i, places, causal, None).astype(np.int64) for i in chosen), np.zeros_like(places))
        return np.asarray(getattr(np, group)(grouped, axis=2)), count

    @staticmethod
    def flops(
        q: TensorType,
        k: TensorType,
        lse: TensorType,
        *,
        rows: int = 0,
        reduce: str = "sum",
        scale: float,
        causal: bool = False,
        group: str = "sum",
    ) -> Dim:
        counted = minimum(rows, q.shape[2]) if rows else q.shape[2]
        logits = q.shape[0] * q.shape[1] * counted * k.shape[2]
        return 2 * logits * q.shape[3] + 4 * logits
