"""The arithmetic that all attention references share: one query row against the keys it may see.

Keys that a row may not see are left out rather than masked, so a row's result is the same whether it is computed in a
full sequence, in a chunk, or against a cache, down to the last bit when the visible keys come in the same order.
"""

from __future__ import annotations

import numpy as np

from irx.ir.opdef import Array, as_float64
from irx.ops.numerics import dot


def logits_of(query: Array, keys: Array, scale: float, softcap: float | None, bias: Array | None) -> Array:
    """scale * keys @ query, then c * tanh(x / c), then plus bias: float64 [T] for query [D], keys [T, D]."""
    logits = scale * dot(np.ascontiguousarray(keys, np.float64), np.ascontiguousarray(query, np.float64))
    if softcap is not None:
        logits = softcap * np.tanh(logits / softcap)
    return logits if bias is None else logits + as_float64(bias)


def weigh(logits: Array, values: Array, sink: float | None) -> tuple[Array, float]:
    """(softmax(logits) @ values, log-sum-exp), the sink logit counted but adding nothing; (0, -inf) for no keys."""
    parts = [float(logits.max())] if logits.size else []
    parts += [sink] if sink is not None else []
    top = max(parts, default=-np.inf)
    if top == -np.inf:
        return np.zeros(values.shape[-1]), -np.inf
    p = np.exp(logits - top)
    total = p.sum() + (np.exp(sink - top) if sink is not None else 0.0)
    out = dot(np.ascontiguousarray(values.T, np.float64), p) / total
    return out, float(top + np.log(total))


def visible_keys(query: int, keys: Array, causal: bool, window: int | None) -> Array:
    """bool [T]: which key positions (-1 = none) the query position may see."""
    seen = keys >= 0
    if causal:
        seen &= keys <= query
    if window is not None:
        seen &= query - keys < window
    return np.asarray(seen)


def merge(o1: Array, lse1: Array, o2: Array, lse2: Array) -> tuple[Array, Array]:
    """Two partial results over disjoint keys as one: outputs [..., D], log-sum-exps [...]."""
    top = np.maximum(lse1, lse2)
    shift = np.where(np.isfinite(top), top, 0)
    w1, w2 = np.exp(lse1 - shift), np.exp(lse2 - shift)
    total = w1 + w2
    safe = np.where(total > 0, total, 1)
    out = (o1 * (w1 / safe)[..., None]) + (o2 * (w2 / safe)[..., None])
    return out, np.where(total > 0, np.log(safe) + shift, -np.inf)
