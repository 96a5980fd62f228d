"""Kernels of activations."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def silu(x: Tensor) -> Tensor:
    return F.silu(x)


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def geglu(gate: Tensor, up: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(gate, approximate=approximate) * up
