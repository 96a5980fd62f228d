"""Kernels that move, cut and make elements."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from irx.runtime.tensors import TORCH

Scalar = bool | int | float


def reshape(x: Tensor, *, shape: tuple[int, ...]) -> Tensor:
    return x.reshape(shape)


def permute(x: Tensor, *, order: tuple[int, ...]) -> Tensor:
    return x.permute(order)


def expand(x: Tensor, *, shape: tuple[int, ...]) -> Tensor:
    return x.expand(shape)


def slice_(x: Tensor, *, axis: int, start: int = 0, stop: int | None = None, step: int = 1) -> Tensor:
    part: Tensor = torch.ops.aten.slice.Tensor(x, axis, start, stop, step)
    return part


def concat(*xs: Tensor, axis: int) -> Tensor:
    return torch.cat(xs, axis)


def pad(x: Tensor, *, before: tuple[int, ...], after: tuple[int, ...], value: float = 0.0) -> Tensor:
    # F.pad wants pairs from the last axis to the first.
    pairs = [size for pair in zip(reversed(before), reversed(after), strict=True) for size in pair]
    if x.dtype == torch.bool:
        return F.pad(x.to(torch.uint8), pairs, value=value).to(torch.bool)
    return F.pad(x, pairs, value=value)


def flip(x: Tensor, *, axes: tuple[int, ...]) -> Tensor:
    return torch.flip(x, axes)


Device = torch.device | None


def arange(*, start: int = 0, stop: int, step: int = 1, dtype: str = "i64", device: Device = None) -> Tensor:
    return torch.arange(start, stop, step, dtype=TORCH[dtype], device=device)


def full(*, shape: tuple[int, ...], value: Scalar, dtype: str, device: Device = None) -> Tensor:
    return torch.full(shape, value, dtype=TORCH[dtype], device=device)
