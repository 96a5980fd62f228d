"""Choosing the next token from logits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def sample(
    logits: Tensor, uniform: Tensor, *, temperature: float, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """One token per row: logits [B, V], uniform [B] in [0, 1) give i64[B]. Temperature 0 takes the likeliest.

    Of softmax(logits / temperature), sorted, the first `top_k` stay, of those the fewest whose sum reaches `top_p`
    (Holtzman et al. 2019, arXiv:1904.09751); the token is where their cumulative sum first exceeds `uniform`.
    """
    if temperature == 0:
        return likeliest(logits)
    probability, order = torch.sort(
        torch.softmax(logits.double() / temperature, 1), dim=1, descending=True, stable=True
    )
    kept = probability[:, :top_k]
    kept = kept / kept.sum(1, keepdim=True)
    total = kept.cumsum(1)
    if top_p is not None:
        # A token stays while the likelier ones together do not reach top_p; what goes never adds to the sum.
        kept = kept.masked_fill(total - kept >= top_p, 0.0)
        total = kept.cumsum(1)
    place = torch.searchsorted(total, uniform.double()[:, None] * total[:, -1:], right=True)
    last = (kept > 0).sum(1, keepdim=True) - 1  # a probability too small for float64 is never drawn
    return order.gather(1, torch.minimum(place, last))[:, 0]


def likeliest(logits: Tensor) -> Tensor:
    """The first of the largest along the last axis: i64[...] for [..., V]."""
    if logits.device.type != "cpu":
        return logits.argmax(-1)
    # numpy's is vectorised; torch's takes ten times as long, fifty for bf16, as long as part of a model's step.
    wide = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
    return torch.from_numpy(np.asarray(wide.detach().numpy().argmax(-1)))
