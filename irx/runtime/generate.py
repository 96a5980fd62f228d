"""The generation loop: the prompt, then one token a step until every row has ended."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from irx.errors import BadOption, PromptTooLong
from irx.runtime.sampling import likeliest, sample
from irx.runtime.session import Session

Stream: TypeAlias = Callable[[Tensor], object]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    `temperature` 0 takes the most likely one, `top_k` and `top_p` restrict the draw to the most likely tokens, and the
    same `seed` gives the same draws.
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
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def __call__(self, logits: Tensor) -> Tensor:
        """Token ids i64 [B, 1] from logits [B, 1, V]."""
        return likeliest(logits) if self.sampling.temperature == 0 else self._drawn(logits)

    def after(self, session: Session, token: Tensor) -> Tensor:
        """Token ids i64 [B, 1] that follow the newest ones, i64 [B, 1], which the session holds then."""
        wanted = 1 if self.sampling.temperature == 0 else self.sampling.top_k
        best = session.top(token, wanted) if wanted is not None else None
        if best is None:
            return self(session.append(token))
        logits, tokens = best
        return tokens[..., 0] if self.sampling.temperature == 0 else tokens[:, 0].gather(1, self._drawn(logits))

    def _drawn(self, logits: Tensor) -> Tensor:
        """Places i64 [B, 1] among logits [B, 1, N]."""
        options = self.sampling
        # Drawn on the host, so that a seed means the same tokens on every device.
        uniform = torch.rand(len(logits), generator=self._generator).to(logits.device)
        drawn = sample(
            logits[:, 0].float(), uniform, temperature=options.temperature, top_k=options.top_k, top_p=options.top_p
        )
        return drawn[:, None]


@dataclass(frozen=True)
class Ending:
    """When a row ends: at one of `tokens`, after which it is filled with `pad`, or after `most` new tokens."""

    most: int
    tokens: Collection[int] = ()
    pad: int = 0

    def __post_init__(self) -> None:
        if self.most < 1:
            raise BadOption(f"max_new_tokens={self.most} asks for nothing", fix="use 1 or more")


def new_tokens(
    session: Session,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    *,
    ending: Ending,
    sampling: Sampling,
    limit: int | None,
    stream: Stream | None = None,
) -> Tensor:
    """Tokens i64 [B, N] that continue `input_ids` [B, T], N at most `ending.most`.

    `stream` receives the tokens [B] of each step as they are chosen. Afterwards the session holds the prompt and all
    tokens up to each row's end but the newest. Raises PromptTooLong before anything runs where `limit` would be passed.
    """
    wanted = _longest(session, input_ids, attention_mask) + ending.most
    if limit is not None and wanted > limit:
        raise PromptTooLong(wanted, limit)
    choose, rows = Sampler(sampling), Rows(len(input_ids), ending)
    token = choose(session.append(input_ids, attention_mask))
    tokens: list[Tensor] = []
    while True:
        if ending.tokens:
            token = rows.filled(token)
        tokens.append(token)
        if stream is not None:
            stream(token[:, 0])
        if len(tokens) == ending.most or rows.all_ended:
            return torch.cat(tokens, dim=1)
        token = choose.after(session, token)


class Rows:
    """Which rows of a generation have ended."""

    def __init__(self, batch: int, ending: Ending) -> None:
        self._ended = [False] * batch
        self._ending = ending
        self.all_ended = False

    def filled(self, token: Tensor) -> Tensor:
        """The tokens i64 [B, 1] of a step, those of rows that ended before it replaced by the filling."""
        values = token[:, 0].tolist()
        if any(self._ended):
            token = token.masked_fill(torch.tensor(self._ended, device=token.device)[:, None], self._ending.pad)
        self._ended = [ended or value in self._ending.tokens for ended, value in zip(self._ended, values, strict=True)]
        self.all_ended = all(self._ended)
        return token


def continue_session(session: Session, tokens: Tensor, ending: Ending) -> None:
    """Make a session hold exactly what was generated: the newest token too, and of no row the filling after its end."""
    before = [n - (tokens.shape[1] - 1) for n in session.lengths]
    session.append(tokens[:, -1:])
    ended = torch.isin(tokens, torch.tensor(sorted(ending.tokens), dtype=torch.int64, device=tokens.device))
    columns = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    counts = torch.where(ended, columns, tokens.shape[1]).amin(1).tolist()
    session.truncate([start + count for start, count in zip(before, counts, strict=True)])


def _longest(session: Session, input_ids: Tensor, mask: Tensor | None) -> int:
    """Tokens of the longest row once the prompt is in."""
    if mask is None or mask.shape != input_ids.shape:  # a wrong mask is the session's to refuse
        return session.length + input_ids.shape[1]
    return max(n + int(count) for n, count in zip(session.lengths, mask.sum(1).tolist(), strict=False))
