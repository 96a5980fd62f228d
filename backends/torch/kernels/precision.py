"""Kernels that change only how precisely numbers are held."""

from __future__ import annotations

import torch
from torch import Tensor

from irx.ir.codes import CODES
from irx.ir.packing import pack
from irx.ops.precision import SMALLEST
from irx.runtime.kv_codes import token_codes
from irx.runtime.tensors import Packed


def quantize(weight: Tensor, *, format: str) -> Packed:
    # By the definition of the format itself, as weights are packed once and not in every step.
    raw = torch.from_numpy(pack(weight.float().cpu().numpy(), format))
    return Packed(raw.to(weight.device), format)


def round_activations(x: Tensor, *, bits: int = 8, group: int = 32) -> Tensor:
    codes = float(2 ** (bits - 1) - 1)
    groups = x.float().reshape(*x.shape[:-1], -1, group)
    largest = groups.abs().amax(-1, keepdim=True)
    largest = torch.where(largest < SMALLEST, 0.0, largest)
    inverse = torch.where(largest == 0, 0.0, codes / largest)
    return (torch.round(groups * inverse) * (largest / codes)).flatten(-2).to(x.dtype)


def round_tokens(x: Tensor, *, code: str) -> Tensor:
    codes, step, low = token_codes(x, CODES[code])
    return (codes * step.float()[..., None] + low.float()[..., None]).to(x.dtype)
