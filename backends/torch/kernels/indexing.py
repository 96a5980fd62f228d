"""Kernels that read and write at indices, which may be negative and then count from the end."""

from __future__ import annotations

import torch
from torch import Tensor

Scalar = bool | int | float


def take(x: Tensor, index: Tensor | int, *, axis: int) -> Tensor:
    if not isinstance(index, Tensor):
        return x.select(axis, index)
    places: list[Tensor | None] = [*[None] * (axis % x.dim()), index]
    found: Tensor = torch.ops.aten.index.Tensor(x, places)
    return found


def gather(x: Tensor, index: Tensor, *, axis: int) -> Tensor:
    return torch.gather(x, axis, _from_start(index, x.shape[axis]))


def scatter(x: Tensor, index: Tensor, source: Tensor | Scalar, *, axis: int) -> Tensor:
    places = _from_start(index, x.shape[axis])
    if isinstance(source, Tensor):
        return torch.scatter(x, axis, places, source.to(x.dtype).expand(index.shape))
    return torch.scatter(x, axis, places, source)


def scatter_slice(
    x: Tensor, source: Tensor | Scalar, *, axis: int, start: int = 0, stop: int | None = None, step: int = 1
) -> Tensor:
    result = x.clone()
    part = torch.ops.aten.slice.Tensor(result, axis, start, stop, step)
    if isinstance(source, Tensor):
        part.copy_(source)
    else:
        part.fill_(source)
    return result


def _from_start(index: Tensor, size: int) -> Tensor:
    wide = index.long()
    return torch.where(wide < 0, wide + size, wide)
