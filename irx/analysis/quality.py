"""Quality: how far a changed program is from the original, on data that nothing was fitted to.

    judge = HeldOut(original, data, prepare)
    judge.figures(changed)      # {"kl": 0.0012, "top1": 0.981, "ppl_ratio": 1.004, "bits_per_byte": 0.71, ...}

Language models are judged under teacher forcing: at every position of a window both programs see the same true tokens,
and their distributions of the next one are compared. Other models are judged by the cosine between their outputs. Data
are streamed; of the original, log-probabilities are kept in float16 up to a limit and computed again beyond it.

What a pass changes in decoding alone is measured there: the first half of a window is a prompt, the second is fed token
by token, and its predictions are compared with those of the original's `forward`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from irx.analysis.calibration import FORWARD, Inputs, Prepare, exposing
from irx.analysis.data import Data
from irx.errors import BudgetError
from irx.ir.opdef import Array
from irx.ir.program import Program

ROWS = 256  # positions whose distributions are compared at once: 50 MB of 50,000 float32 logits
Session: TypeAlias = Callable[[Array], Tensor]
"""Appends ids [B, S] to a conversation; logits [B, 1, V] of the last."""
KEPT_BYTES = 2 << 30  # of the original's log-probabilities


@dataclass
class NextTokens:
    """Sums over positions of a language model's predictions: old is the original's, new the changed one's."""

    positions: int = 0
    kl: float = 0.0
    same: int = 0
    old_loss: float = 0.0
    new_loss: float = 0.0

    def add(self, other: NextTokens) -> None:
        """The sums of further positions."""
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))

    def figures(self, bytes_per_token: float | None = None) -> dict[str, float]:
        """Mean KL in nats, top-1 agreement, perplexities' ratio; bits per byte of text where that is known."""
        count = max(self.positions, 1)
        found = {
            "kl": self.kl / count,
            "top1": self.same / count,
            "ppl_ratio": math.exp(min((self.new_loss - self.old_loss) / count, 700.0)),
        }
        if bytes_per_token:
            found["bits_per_byte"] = self.new_loss / count / math.log(2) / bytes_per_token
            found["bits_per_byte_before"] = self.old_loss / count / math.log(2) / bytes_per_token
        return found


@dataclass(frozen=True)
class Predictions:
    """What a model predicts at N positions: rounded log-probabilities f16[N, V], best tokens, the true ones' losses."""

    rounded: Tensor
    best: Tensor
    loss: Tensor

    @staticmethod
    def of(logits: Tensor, targets: Tensor) -> Predictions:
        """From logits [N, V] and the true next tokens [N].

        Log-probabilities are close to 0 where they matter, so float16 keeps them to 1e-3 of a nat; both models are
        rounded alike, so that equal ones differ by nothing.
        """
        logs = logits.float().log_softmax(-1)
        loss = -logs.gather(-1, targets[:, None])[:, 0]
        return Predictions(logs.clamp_min(-60000.0).half(), logs.argmax(-1), loss)

    def compare(self, new: Predictions, sums: NextTokens) -> None:
        """Add the distances of another model's predictions at the same positions."""
        p, q = self.rounded.float().log_softmax(-1), new.rounded.float().log_softmax(-1)
        sums.kl += float((p.exp() * (p - q)).sum(-1, dtype=torch.float64).sum())
        sums.same += int((self.best == new.best).sum())
        sums.old_loss += float(self.loss.sum(dtype=torch.float64))
        sums.new_loss += float(new.loss.sum(dtype=torch.float64))
        sums.positions += len(self.best)


@dataclass
class HeldOut:
    """Compares programs with the original on the held-out part of a user's data.

    `prepare` makes programs of one graph runnable; `converse` opens sessions of some rows with one that has a cache.
    """

    original: Program
    data: Data
    prepare: Prepare
    converse: Callable[[Program], Callable[[int], Session]] | None = None
    kept: dict[tuple[bool, int], list[Any]] = field(default_factory=dict, init=False)  # by decoding and batch

    @property
    def names(self) -> tuple[str, ...]:
        """The figures that this model and these data give, those of texts alone not counted."""
        return tuple(NextTokens().figures()) if self.data.causal else ("cosine",)

    def figures(self, program: Program, decoding: bool = False) -> dict[str, float]:
        """All figures of a program beside the original: those of next tokens, or the mean cosine of outputs.

        With `decoding` the program predicts token by token behind a prompt, as its graphs with a cache do.
        """
        with torch.no_grad():
            return self._next_tokens(program, decoding) if self.data.causal else self._cosine(program)

    def own(self, metric: Callable[[Callable[..., Mapping[str, Tensor]]], float], program: Program) -> float:
        """The user's measure of a program, which is called with inputs by name and returns tensors by name."""
        graph = program.graphs[FORWARD]
        run = self.prepare(exposing(program, graph.outputs))

        def model(**inputs: Any) -> dict[str, Tensor]:
            outputs = run({name: np.asarray(value) for name, value in inputs.items()})
            return {name: _tensor(array) for name, array in zip(graph.output_names, outputs, strict=True)}

        return float(metric(model))

    def by_batch(self, program: Program) -> list[dict[str, float]]:
        """The figures of every held-out batch alone, for who compares methods batch by batch."""
        with torch.no_grad():
            if self.data.causal:
                return [sums.figures(self.data.bytes_per_token) for sums in self._sums(program, decoding=False)]
            return [{"cosine": float(similar.mean())} for similar in self._similar(program)]

    def _next_tokens(self, program: Program, decoding: bool) -> dict[str, float]:
        sums = NextTokens()
        for one in self._sums(program, decoding):
            sums.add(one)
        return sums.figures(self.data.bytes_per_token)

    def _sums(self, program: Program, decoding: bool) -> Iterator[NextTokens]:
        """Of every batch."""
        new_logits = self._decoder(program) if decoding else self._runner(program)
        for old, new in self._pairs(new_logits, partial(self._predictions, decoding=decoding), decoding):
            sums = NextTokens()
            for before, after in zip(old, new, strict=True):
                before.compare(after, sums)
            yield sums

    def _cosine(self, program: Program) -> dict[str, float]:
        total, rows = 0.0, 0
        for found in self._similar(program):
            total, rows = total + float(found.sum()), rows + found.numel()
        return {"cosine": min(total / max(rows, 1), 1.0)}

    def _similar(self, program: Program) -> Iterator[Tensor]:
        """Cosines of the rows of every batch."""
        for (old,), (new,) in self._pairs(self._runner(program), self._embeddings):
            yield torch.nn.functional.cosine_similarity(old, new, dim=-1)

    def _pairs(
        self, new: Callable[[Inputs], Array], read: Callable[[Inputs, Array], Iterator[Any]], decoding: bool = False
    ) -> Iterator[tuple[Sequence[Any], Iterator[Any]]]:
        """What the original and the program give for every batch; the original runs only where nothing was kept."""
        old: Callable[[Inputs], Array] | None = None
        for i, batch in enumerate(self.data.decoded() if decoding else self.data.held_out):
            found = self.kept.get((decoding, i))
            if found is None:
                old = old or self._runner(self.original)
                found = list(read(batch, old(batch)))
                if self._kept_bytes() < KEPT_BYTES:
                    self.kept[decoding, i] = found
            yield found, read(batch, new(batch))

    def _runner(self, program: Program) -> Callable[[Inputs], Array]:
        """A function from inputs to the first output of `forward`."""
        run = self.prepare(exposing(program, program.graphs[FORWARD].outputs[:1]))
        return lambda batch: run(batch)[0]

    def _decoder(self, program: Program) -> Callable[[Inputs], Array]:
        """A function from inputs to the logits of the last token of the prompt and of all behind it."""
        if self.converse is None or any(len(batch) > 1 for batch in self.data.held_out):
            what = "what is changed in decoding alone is measured on ids or texts of a model with a cache"
            raise BudgetError(what, fix="leave the pass out, or give data= as ids or texts")
        begin, name = self.converse(program), str(self.data.ids)

        def run(batch: Inputs) -> Array:
            ids = np.asarray(batch[name])
            append, prompt = begin(len(ids)), _prompt(ids)
            pieces = [ids[:, :prompt], *np.split(ids[:, prompt:], ids.shape[1] - prompt, axis=1)]
            return np.concatenate([append(piece).float().cpu().numpy() for piece in pieces], axis=1)

        return run

    def _kept_bytes(self) -> int:
        tensors = [item.rounded if isinstance(item, Predictions) else item for f in self.kept.values() for item in f]
        return sum(tensor.nbytes for tensor in tensors)

    def _predictions(self, batch: Inputs, logits: Array, decoding: bool) -> Iterator[Predictions]:
        """Predictions of all true tokens but the first of each row, or of those behind the prompt, a few at a time."""
        assert self.data.ids is not None
        ids = torch.from_numpy(np.asarray(batch[self.data.ids], np.int64))
        first = _prompt(ids) if decoding else 1
        wanted = self._mask(batch, ids.shape)[:, first:].bool()
        scores = _tensor(logits)[:, first - 1 - ids.shape[1] :]  # what decodes gives no more than these
        targets, scores = ids[:, first:][wanted], scores[:, :-1][wanted]
        for start in range(0, len(targets), ROWS):
            yield Predictions.of(scores[start : start + ROWS], targets[start : start + ROWS])

    def _embeddings(self, batch: Inputs, output: Array) -> Iterator[Tensor]:
        """One vector for every row: [B, D] as they are, of [B, S, D] the mean over the mask's tokens."""
        found = _tensor(output).double()
        if found.ndim != 3:
            yield found.reshape(len(found), -1) if found.ndim > 1 else found[None]
            return
        mask = self._mask(batch, found.shape[:2]).double()[..., None]
        yield (found * mask).sum(1) / mask.sum(1).clamp_min(1)

    def _mask(self, batch: Inputs, shape: Sequence[int]) -> Tensor:
        """1 for tokens that count, [B, S]."""
        given = batch.get(self.data.mask) if self.data.mask is not None else None
        if given is None or np.shape(given) != tuple(shape):
            return torch.ones(tuple(shape))
        return _tensor(given)


def _prompt(ids: Any) -> int:
    """How many tokens of every window [B, S] are a prompt where decoding is measured."""
    return int(ids.shape[1]) // 2


def _tensor(array: Array) -> Tensor:
    """Floats as float32 where torch has no such numpy dtype."""
    return torch.from_numpy(np.ascontiguousarray(array.astype(np.float32) if array.dtype.kind == "V" else array))
