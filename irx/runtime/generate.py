"""The generation loop: prefill the prompt, then one token a step until every row has ended."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol, TypeAlias

import torch

from irx.errors import BadOption
from irx.runtime.sampling import Sampler, Sampling

Stream: TypeAlias = Callable[[torch.Tensor], object]


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
