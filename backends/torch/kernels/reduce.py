"""Kernels that reduce or order along axes. No axes means nothing to reduce, where torch would reduce all of them."""

from __future__ import annotations

import torch
from torch import Tensor

Axes = tuple[int, ...]


def sum_(x: Tensor, *, axes: Axes, keepdims: bool = False) -> Tensor:
    if not axes:
        return x if x.is_floating_point() else x.long()
    return torch.sum(x, axes, keepdims)


def mean(x: Tensor, *, axes: Axes, keepdims: bool = False) -> Tensor:
    floating = x if x.is_floating_point() else x.float()
    return torch.mean(floating, axes, keepdims) if axes else floating


def amax(x: Tensor, *, axes: Axes, keepdims: bool = False) -> Tensor:
    return torch.amax(x, axes, keepdims) if axes else x


def amin(x: Tensor, *, axes: Axes, keepdims: bool = False) -> Tensor:
    return torch.amin(x, axes, keepdims) if axes else x


def any_(x: Tensor, *, axes: Axes, keepdims: bool = False) -> Tensor:
    return torch.any(x != 0, axes, keepdims) if axes else x != 0


def all_(x: Tensor, *, axes: Axes, keepdims: bool = False) -> Tensor:
    return torch.all(x != 0, axes, keepdims) if axes else x != 0


def argmax(x: Tensor, *, axis: int, keepdims: bool = False) -> Tensor:
    return torch.argmax(x.byte() if x.dtype == torch.bool else x, axis, keepdims)


def cumsum(x: Tensor, *, axis: int) -> Tensor:
    return torch.cumsum(x, axis)


def softmax(x: Tensor, *, axis: int) -> Tensor:
    return torch.softmax(x, axis)


def log_softmax(x: Tensor, *, axis: int) -> Tensor:
    return torch.log_softmax(x, axis)


def logsumexp(x: Tensor, *, axes: Axes, keepdims: bool = False) -> Tensor:
    return torch.logsumexp(x, axes, keepdims) if axes else x


def topk(x: Tensor, *, k: int, axis: int) -> tuple[Tensor, Tensor]:
    # torch.topk breaks ties at will; a stable sort keeps the lower index first.
    values, indices = torch.sort(x, dim=axis, descending=True, stable=True)
    return values.narrow(axis, 0, k), indices.narrow(axis, 0, k)
