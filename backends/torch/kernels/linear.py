"""Kernels of matrix products and of weights read as rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from irx.ir.blocks import unpack
from irx.runtime.tensors import TORCH, Packed


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    return F.embedding(ids, weight)


def dequantize(weight: Packed, *, dtype: str = "f32") -> Tensor:
    # By the definition of the format itself; a plan calls this once per weight, not once per step.
    values = unpack(weight.raw.cpu().numpy(), weight.form)
    return torch.from_numpy(values).to(device=weight.raw.device, dtype=TORCH[dtype])
