"""Choosing the next token from logits: the most likely one, or a draw."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from irx.errors import BadOption


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    `temperature` 0 takes the most likely token. Otherwise logits are divided by it, and the draw is restricted to the
    `top_k` most likely tokens and to the smallest set that holds probability `top_p` (Holtzman et al. 2020), where
    given. The same `seed` gives the same draws.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise BadOption(f"temperature={self.temperature} is negative", fix="use 0 for the most likely token")
        if self.top_k is not None and self.top_k < 1:
            raise BadOption(f"top_k={self.top_k} leaves no token", fix="use 1 or more, or None for all")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise BadOption(f"top_p={self.top_p} is no probability", fix="use a number above 0, up to 1")


class Sampler:
    """Draws tokens; owns the random state of one generation."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is not None:
            self._generator.manual_seed(sampling.seed)
        else:
            self._generator.seed()

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Token ids i64 [B] from logits [B, V]."""
        if self.sampling.temperature == 0:
            return logits.argmax(-1)
        scores = logits.float() / self.sampling.temperature
        return torch.multinomial(self._restricted(scores).softmax(-1), 1, generator=self._generator)[:, 0]

    def _restricted(self, scores: torch.Tensor) -> torch.Tensor:
        top_k, top_p = self.sampling.top_k, self.sampling.top_p
        if top_k is not None and top_k < scores.shape[-1]:
            least = scores.topk(top_k, dim=-1).values[:, -1:]
            scores = scores.masked_fill(scores < least, float("-inf"))
        if top_p is not None and top_p < 1:
            scores = _nucleus(scores, top_p)
        return scores


def _nucleus(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    ordered, order = scores.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(-1)
    # A token stays while the ones before it hold less than top_p, so that the most likely one always does.
    outside = probabilities.cumsum(-1) - probabilities >= top_p
    dropped = torch.zeros_like(outside).scatter(-1, order, outside)
    return scores.masked_fill(dropped, float("-inf"))
