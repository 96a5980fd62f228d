"""Kernels of normalisations over the last axis, statistics in float32 at least."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float, cast_before_weight: bool = False) -> Tensor:
    # torch multiplies by the weight in float32 and casts last. In full precision there is no cast to come before.
    size = x.shape[-1:]
    if weight is None or (weight.dtype == x.dtype and (not cast_before_weight or x.element_size() >= 4)):
        return F.rms_norm(x, size, weight, eps)
    if cast_before_weight:
        return F.rms_norm(x, size, None, eps).mul(weight).to(x.dtype)
    wide = _wide(x)
    return F.rms_norm(x.to(wide), size, weight.to(wide), eps).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float) -> Tensor:
    if all(p is None or p.dtype == x.dtype for p in (weight, bias)):
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    wide = _wide(x)
    scale, shift = (p if p is None else p.to(wide) for p in (weight, bias))
    return F.layer_norm(x.to(wide), x.shape[-1:], scale, shift, eps).to(x.dtype)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
