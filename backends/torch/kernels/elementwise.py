"""Kernels that map element to element. Operands may be Python scalars, weakly typed as torch itself has it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from irx.runtime.tensors import TORCH

Scalar = bool | int | float
Operand = Tensor | Scalar


def add(x: Operand, y: Operand) -> Operand:
    return x + y


def sub(x: Operand, y: Operand) -> Operand:
    return x - y


def mul(x: Operand, y: Operand) -> Operand:
    return x * y


def div(x: Operand, y: Operand) -> Operand:
    return x / y


def pow_(x: Operand, y: Operand) -> Operand:
    return x**y


def floor_div(x: Operand, y: Operand) -> Operand:
    return x // y


def remainder(x: Operand, y: Operand) -> Operand:
    return x % y


def maximum(x: Operand, y: Operand) -> Operand:
    return torch.maximum(*_tensors(x, y))


def minimum(x: Operand, y: Operand) -> Operand:
    return torch.minimum(*_tensors(x, y))


def _tensors(x: Operand, y: Operand) -> tuple[Tensor, Tensor]:
    """Both operands as tensors: a scalar becomes one without axes, which promotes as a scalar does."""
    device = x.device if isinstance(x, Tensor) else y.device if isinstance(y, Tensor) else None
    return torch.as_tensor(x, device=device), torch.as_tensor(y, device=device)


def eq(x: Operand, y: Operand) -> Operand:
    return x == y


def ne(x: Operand, y: Operand) -> Operand:
    return x != y


def lt(x: Operand, y: Operand) -> Operand:
    return x < y


def le(x: Operand, y: Operand) -> Operand:
    return x <= y


def gt(x: Operand, y: Operand) -> Operand:
    return x > y


def ge(x: Operand, y: Operand) -> Operand:
    return x >= y


def and_(x: Tensor, y: Tensor) -> Tensor:
    return x & y


def or_(x: Tensor, y: Tensor) -> Tensor:
    return x | y


def xor(x: Tensor, y: Tensor) -> Tensor:
    return x ^ y


def not_(x: Tensor) -> Tensor:
    return torch.bitwise_not(x)


def neg(x: Tensor) -> Tensor:
    return -x


def abs_(x: Tensor) -> Tensor:
    return torch.abs(x)


def exp(x: Tensor) -> Tensor:
    return torch.exp(x)


def log(x: Tensor) -> Tensor:
    return torch.log(x)


def sqrt(x: Tensor) -> Tensor:
    return torch.sqrt(x)


def rsqrt(x: Tensor) -> Tensor:
    return torch.rsqrt(x)


def reciprocal(x: Tensor) -> Tensor:
    return torch.reciprocal(x)


def sin(x: Tensor) -> Tensor:
    return torch.sin(x)


def cos(x: Tensor) -> Tensor:
    return torch.cos(x)


def tanh(x: Tensor) -> Tensor:
    return torch.tanh(x)


def sigmoid(x: Tensor) -> Tensor:
    return torch.sigmoid(x)


def erf(x: Tensor) -> Tensor:
    return torch.erf(x)


def floor(x: Tensor) -> Tensor:
    return torch.floor(x)


def ceil(x: Tensor) -> Tensor:
    return torch.ceil(x)


def sign(x: Tensor) -> Tensor:
    return torch.sign(x)


def relu(x: Tensor) -> Tensor:
    return F.relu(x)


def softplus(x: Tensor) -> Tensor:
    # torch's own turns into the identity above a threshold, which is visible in float64.
    return torch.logaddexp(x if x.is_floating_point() else x.float(), torch.zeros((), dtype=x.dtype, device=x.device))


def where(condition: Operand, x: Operand, y: Operand) -> Operand:
    if not isinstance(condition, Tensor):
        return x if condition else y
    return torch.where(condition, x, y)


def clamp(x: Tensor, *, low: float | None = None, high: float | None = None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


def cast(x: Operand, *, dtype: str) -> Tensor:
    return x.to(TORCH[dtype]) if isinstance(x, Tensor) else torch.tensor(x, dtype=TORCH[dtype])
