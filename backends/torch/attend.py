"""The arithmetic all attention kernels share: torch's fused attention where it has the form, else spelled out.

Query heads that share a KV head are computed together, so keys and values are never repeated in memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None,
    sinks: Tensor | None = None, *, scale: float, causal: bool = False, softcap: float | None = None,
) -> Tensor:  # fmt: skip
    """[B, H, S, Dv]; `causal` excludes a mask and a bias, and aligns the first query with the first key."""
    if sinks is not None or softcap is not None:
        rows, keys = q.shape[2], k.shape[2]
        seen = causal_mask(rows, keys, q.device) if causal else mask
        return weigh(q, k, v, seen, bias, sinks, scale=scale, softcap=softcap)[0]
    if k.shape[1] != v.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    grouped = k.shape[1] != q.shape[1]
    added = _added(mask, bias, q.dtype)
    return F.scaled_dot_product_attention(q, k, v, added, is_causal=causal, scale=scale, enable_gqa=grouped)


def _added(mask: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if bias is None:
        return mask
    bias = bias.to(dtype)
    return bias if mask is None else torch.where(mask, bias, -torch.inf)


def weigh(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, sinks: Tensor | None, *,
    scale: float, softcap: float | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(out [B, H, S, Dv] in q's dtype, log-sum-exp [B, H, S] in float32 at least); a row that sees nothing gives 0."""
    logits = logits_of(q, k, scale, softcap)
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    top = logits.amax(-1, keepdim=True)
    sink = None if sinks is None else sinks.to(logits.dtype)[:, None, None]
    top = top if sink is None else torch.maximum(top, sink)
    shift = top.masked_fill(top == -torch.inf, 0)
    p = torch.exp(logits - shift)
    total = p.sum(-1, keepdim=True)
    total = total if sink is None else total + torch.exp(sink - shift)
    out = grouped(p / total.clamp_min(torch.finfo(p.dtype).tiny), v.to(p.dtype))
    return out.to(q.dtype), (total.log() + shift)[..., 0]


def logits_of(q: Tensor, k: Tensor, scale: float, softcap: float | None) -> Tensor:
    """scale * q k^T, then the soft cap: [B, H, S, T] in float32 at least."""
    wide = torch.promote_types(q.dtype, torch.float32)
    logits = grouped(q.to(wide), k.to(wide).transpose(2, 3)) * scale
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def grouped(x: Tensor, y: Tensor) -> Tensor:
    """x [B, H, S, K] times y [B, G, K, N], head h with group h // (H / G): [B, H, S, N]."""
    batch, heads, rows, _ = x.shape
    if heads == y.shape[1]:
        return torch.matmul(x, y)
    stacked = x.reshape(batch, y.shape[1], heads // y.shape[1] * rows, x.shape[3])
    return torch.matmul(stacked, y).reshape(batch, heads, rows, y.shape[3])


def causal_mask(rows: int, keys: int, device: torch.device, start: int = 0, window: int | None = None) -> Tensor:
    """bool [rows, keys]: which keys the query at position start + row may see."""
    return visible(
        torch.arange(start, start + rows, device=device)[:, None], torch.arange(keys, device=device), True, window
    )


def visible(queries: Tensor, keys: Tensor, causal: bool, window: int | None) -> Tensor:
    """Which key positions each query position may see; both broadcast. Without a rule everything is seen."""
    if causal and window is not None:
        return (keys <= queries) & (queries - keys < window)
    if causal:
        return keys <= queries
    return queries - keys < (2**62 if window is None else window)
