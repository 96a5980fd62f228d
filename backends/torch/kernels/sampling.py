"""Choosing the next token; generation itself uses the same function."""

from __future__ import annotations

from torch import Tensor

from irx.runtime import sampling


def sample(
    logits: Tensor, uniform: Tensor, *, temperature: float, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    return sampling.sample(logits, uniform, temperature=temperature, top_k=top_k, top_p=top_p)
