"""Kernels of attention over whole sequences."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from irx.backends.torch.attend import attend, causal_mask, logits_of, visible, weigh


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None,
    sinks: Tensor | None = None, *, scale: float, causal: bool = False, window: int | None = None,
    softcap: float | None = None,
) -> Tensor:  # fmt: skip
    if causal and window is None and mask is None and bias is None:
        return attend(q, k, v, None, None, sinks, scale=scale, causal=True, softcap=softcap)
    seen = _seen(q, k, mask, causal, window)
    return attend(q, k, v, seen, bias, sinks, scale=scale, softcap=softcap)


def attention_lse(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None,
    sinks: Tensor | None = None, *, scale: float, causal: bool = False, window: int | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out, lse = weigh(q, k, v, _seen(q, k, mask, causal, window), bias, sinks, scale=scale, softcap=softcap)
    return out, lse.float()


def merge_attention(o1: Tensor, lse1: Tensor, o2: Tensor, lse2: Tensor) -> tuple[Tensor, Tensor]:
    top = torch.maximum(lse1, lse2)
    shift = top.masked_fill(top == -torch.inf, 0)
    w1, w2 = torch.exp(lse1 - shift), torch.exp(lse2 - shift)
    total = w1 + w2
    safe = total.masked_fill(total == 0, 1)
    out = o1 * (w1 / safe)[..., None] + o2 * (w2 / safe)[..., None]
    return out.to(o1.dtype), total.log() + shift


def attention_stats(
    q: Tensor, k: Tensor, lse: Tensor, *, rows: int = 0, reduce: str = "sum", scale: float, causal: bool = False,
    group: str = "sum",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    first = max(0, q.shape[2] - rows) if rows else 0
    places = torch.arange(first, q.shape[2], device=q.device)[:, None]
    seen = visible(places, torch.arange(k.shape[2], device=q.device), causal, None)
    p = torch.exp(logits_of(q[:, :, first:], k, scale, None) - lse[:, :, first:, None]) * seen
    per_head = p.sum(2) if reduce == "sum" else p.amax(2)
    per_group = per_head.reshape(len(k), k.shape[1], -1, k.shape[2])
    over: dict[str, Callable[[Tensor, int], Tensor]] = {"sum": torch.sum, "mean": torch.mean, "max": torch.amax}
    return over[group](per_group, 2).float(), seen.sum(0)


def _seen(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, window: int | None) -> Tensor | None:
    if not causal and window is None:
        return mask
    if causal:
        rule = causal_mask(q.shape[2], k.shape[2], q.device, 0, window)
    else:
        rows = torch.arange(q.shape[2], device=q.device)[:, None]
        rule = visible(rows, torch.arange(k.shape[2], device=q.device), False, window)
    return rule if mask is None else rule & mask
