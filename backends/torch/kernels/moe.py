"""Mixture of experts: tokens are sorted by expert, so that each chosen expert's weights are read once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def moe(
    x: Tensor, index: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None, *, activation: str = "silu", interleaved: bool = False, transposed: bool = False,
    alpha: float = 1.702, limit: float | None = None,
) -> Tensor:  # fmt: skip
    choices = index.shape[1]
    order = torch.argsort(index.reshape(-1), stable=True)
    counts = torch.bincount(index.reshape(-1), minlength=len(gate_up)).tolist()
    sorted_rows = x[order // choices]
    parts = torch.empty(len(order), x.shape[1], dtype=x.dtype, device=x.device)
    start = 0
    for expert, count in enumerate(counts):
        if not count:
            continue
        first = _project(sorted_rows[start : start + count], gate_up[expert], _at(gate_up_bias, expert), transposed)
        hidden = _gated(*_split(first, interleaved), activation, alpha, limit)
        # Back in the order of the tokens, so that the sum over a token's experts has a fixed order.
        parts[order[start : start + count]] = _project(hidden, down[expert], _at(down_bias, expert), transposed)
        start += count
    wide = torch.promote_types(x.dtype, torch.float32)
    scaled = parts.view(*index.shape, -1).to(wide) * weights[..., None]
    return scaled.sum(1).to(x.dtype)


def _project(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    return F.linear(x, weight.t() if transposed else weight, bias)


def _at(bias: Tensor | None, expert: int) -> Tensor | None:
    return None if bias is None else bias[expert]


def _split(both: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    if interleaved:
        return both[:, ::2], both[:, 1::2]
    gate, up = both.chunk(2, dim=1)
    return gate, up


def _gated(gate: Tensor, up: Tensor, activation: str, alpha: float, limit: float | None) -> Tensor:
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    if activation == "swigluoai":
        return gate * torch.sigmoid(alpha * gate) * (up + 1)
    if activation == "silu":
        return F.silu(gate) * up
    return F.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none") * up
