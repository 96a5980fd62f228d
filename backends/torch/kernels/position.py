"""Kernels of positions. The rotation of a rope is computed once for all nodes that share positions and frequencies."""

from __future__ import annotations

import torch
from torch import Tensor

from irx.backends.torch.shared import Shared


def rope(x: Tensor, positions: Tensor, inv_freq: Tensor, *, style: str = "half", scale: float = 1.0) -> Tensor:
    return _rotate(x, _rotation(positions, inv_freq, style=style, scale=scale), style=style)


def _rotation(positions: Tensor, inv_freq: Tensor, *, style: str, scale: float) -> tuple[Tensor, Tensor]:
    """cos and signed sin [B, 1, S, R] for every rotated channel, in float32 at least."""
    wide = torch.promote_types(inv_freq.dtype, torch.float32)
    angles = positions[:, None, :, None].to(wide) * inv_freq
    cos, sin = torch.cos(angles) * scale, torch.sin(angles) * scale
    if style == "half":
        return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    return torch.stack((cos, cos), -1).flatten(-2), torch.stack((-sin, sin), -1).flatten(-2)


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor], *, style: str) -> Tensor:
    """x * cos + partner(x) * sin, with the other channel of the pair as partner."""
    cos, sin = rotation
    size = cos.shape[-1]
    turned = x if size == x.shape[-1] else x[..., :size]
    partner = _neighbours(turned) if style == "interleaved" else _halves(turned)
    result = torch.addcmul(turned * cos, partner, sin).to(x.dtype)
    return result if turned is x else torch.cat((result, x[..., size:]), -1)


def _neighbours(x: Tensor) -> Tensor:
    return x.reshape(*x.shape[:-1], -1, 2).flip(-1).flatten(-2)


def _halves(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((second, first), -1)


def relative_bias(positions_q: Tensor, table: Tensor, *, keys: int) -> Tensor:
    distance = positions_q[:, :, None] - torch.arange(keys, device=positions_q.device)
    return table[:, distance.clamp(0, table.shape[1] - 1)].transpose(0, 1)


SHARED = {"rope": Shared(prepare=_rotation, takes=(1, 2), rest=_rotate, keeps=("style",))}
