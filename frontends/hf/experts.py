"""Which of IRX's expert MLPs a module of experts computes, found out by evaluating its gate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

_WIDTH = 16


@dataclass(frozen=True)
class ExpertsSpec:
    """Attributes of `irx.moe` for one module; `limit` is 0 where nothing is clamped."""

    activation: str
    interleaved: bool
    transposed: bool
    alpha: float = 1.702
    limit: float = 0.0


def recognise_experts(module: torch.nn.Module) -> ExpertsSpec | None:
    """The spec of a transformers experts module, or None where no candidate gives its gate's results."""
    if not getattr(module, "has_gate", False) or getattr(module, "has_post_expert_norm", False):
        return None
    if getattr(module, "_is_expert_parallel", False) or not hasattr(module, "gate_up_proj"):
        return None
    both = 4 * torch.randn(8, 2 * _WIDTH, generator=torch.Generator().manual_seed(0))
    try:
        wanted = module._apply_gate(both)  # type: ignore[operator]
    except (RuntimeError, AttributeError, TypeError):
        return None  # a gate with parameters of its own size or device: not one of the known
    for spec in _candidates(module):
        if torch.allclose(_gate(both, spec), wanted, rtol=1e-5, atol=1e-6):
            return spec
    return None


def _candidates(module: Any) -> Iterator[ExpertsSpec]:
    transposed = bool(module.is_transposed)
    limits = [0.0, *(float(v) for v in (getattr(module, "limit", None), getattr(module, "swiglu_limit", None)) if v)]
    alpha = float(getattr(module, "alpha", 1.702))
    for interleaved in (False, True):
        for limit in limits:
            for activation in ("silu", "gelu", "gelu_tanh"):
                yield ExpertsSpec(activation, interleaved, transposed, limit=limit)
            yield ExpertsSpec("swigluoai", interleaved, transposed, alpha, limit)


def _gate(both: torch.Tensor, spec: ExpertsSpec) -> torch.Tensor:
    gate, up = (both[:, ::2], both[:, 1::2]) if spec.interleaved else both.chunk(2, dim=-1)
    if spec.limit:
        gate, up = gate.clamp(max=spec.limit), up.clamp(-spec.limit, spec.limit)
    if spec.activation == "swigluoai":
        return gate * torch.sigmoid(spec.alpha * gate) * (up + 1)
    if spec.activation == "silu":
        return functional.silu(gate) * up
    return functional.gelu(gate, approximate="tanh" if spec.activation == "gelu_tanh" else "none") * up
