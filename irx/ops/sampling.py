"""Choosing the next token."""

from __future__ import annotations

import numpy as np

from irx.ir.dims import Dim
from irx.ir.opdef import Array, OpDef, as_float64
from irx.ir.types import TensorType
from irx.ops.numerics import softmax
from irx.ops.shapes import need, need_float, need_rank, need_shape


class Sample(OpDef):
    """One token per row: logits [B, V], uniform [B] in [0, 1) give i64[B]; `temperature` 0 is argmax.

    Probabilities softmax(logits / temperature) are sorted, largest first (ties to the lower id); the first `top_k`
    stay, of those the fewest whose sum reaches `top_p`; the token is where their renormalised cumulative sum first
    exceeds uniform. (top-p: Holtzman et al. 2019, arXiv:1904.09751.)
    """

    name = "sample"

    @staticmethod
    def infer(
        logits: TensorType,
        uniform: TensorType,
        *,
        temperature: float,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> TensorType:
        need_float(logits, "logits")
        need_rank(logits, 2, "logits")
        need_shape(uniform, logits.shape[:1], "uniform")
        need(temperature >= 0, f"temperature must not be negative: {temperature}")
        need(top_k is None or top_k >= 1, f"top_k must be at least 1: {top_k}")
        need(top_p is None or 0 < top_p <= 1, f"top_p must be in (0, 1]: {top_p}")
        return TensorType(logits.shape[:1], "i64")

    @staticmethod
    def reference(
        logits: Array, uniform: Array, *, temperature: float, top_k: int | None = None, top_p: float | None = None
    ) -> Array:
        if temperature == 0:
            return np.asarray(np.argmax(logits, axis=1))
        rows = softmax(as_float64(logits) / temperature, axis=1)
        chosen = [_draw(p, float(u), top_k, top_p) for p, u in zip(rows, uniform, strict=True)]
        return np.asarray(chosen, dtype=np.int64)

    @staticmethod
    def flops(
        logits: TensorType,
        uniform: TensorType,
        *,
        temperature: float,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Dim:
        return 8 * logits.elements


def _draw(p: Array, uniform: float, top_k: int | None, top_p: float | None) -> int:
    order = np.argsort(-p, kind="stable")[:top_k]
    kept = p[order] / p[order].sum()
    if top_p is not None:
        before = np.cumsum(kept) - kept  # what the likelier tokens have together
        kept = kept[before < top_p]
    total = np.cumsum(kept)
    place = int(np.searchsorted(total, uniform * total[-1], side="right"))
    return int(order[min(place, len(total) - 1)])
