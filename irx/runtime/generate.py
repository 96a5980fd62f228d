"""The generation loop: prefill the prompt, then one token a step until every row has ended."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch

from irx.errors import BadOption
from irx.runtime.sampling import sample

Stream: TypeAlias = Callable[[torch.Tensor], object]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: `temperature` 0 takes the most likely one, `top_k` and `top_p` restrict the draw to the most
    likely tokens, and the same `seed` gives the same draws."""

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
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Token ids i64 [B] from logits [B, V]."""
        if self.sampling.temperature == 0:
            return logits.argmax(-1)
        uniform = torch.rand(len(logits), generator=self._generator)
        options = self.sampling
        return sample(
            logits.float(), uniform, temperature=options.temperature, top_k=options.top_k, top_p=options.top_p
        )


class Cache(Protocol):
    """What the loop needs of a session."""

    def append(self, ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [B, 1, V] of the last token of each row, after storing ids [B, S]."""
        ...


def new_tokens(
    session: Cache,
    input_ids: torch.Tensor,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    attention_mask: torch.Tensor | None = None,
    ends: Collection[int] = (),
    pad: int = 0,
    stream: Stream | None = None,
) -> torch.Tensor:
    """Tokens i64 [B, N] that continue `input_ids` [B, T], N at most `max_new_tokens`.

    A row that produced one of `ends` is filled with `pad`; generation stops when all rows have. `stream` receives the
    tokens [B] of each step as they are chosen.
    """
    if max_new_tokens < 1:
        raise BadOption(f"max_new_tokens={max_new_tokens} asks for nothing", fix="use 1 or more")
    choose = Sampler(sampling)
    stops = torch.tensor(sorted(ends), dtype=torch.int64)
    finished = torch.zeros(len(input_ids), dtype=torch.bool)
    tokens: list[torch.Tensor] = []
    logits = session.append(input_ids, attention_mask)
    while True:
        token = choose(logits[:, -1]).masked_fill(finished, pad)
        tokens.append(token)
        if stream is not None:
            stream(token)
        finished |= torch.isin(token, stops)
        if len(tokens) == max_new_tokens or bool(finished.all()):
            return torch.stack(tokens, dim=1)
        logits = session.append(token[:, None])
