"""A conversation with a language model: the tokens so far, kept as keys and values.

session = executable.session(batch=2)
logits = session.append(prompt_ids, attention_mask)     # any number of tokens: a prompt, a chunk of one, a single step
logits = session.append(next_ids)
other = session.fork()                                   # go on in two ways
session.truncate(16)                                     # take back all but the first 16 tokens
prefix = executable.prefix(long_ids)                     # stored once, for rows that begin with it
session = executable.session(batch=8, prefix=prefix)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from irx.errors import BatchTooLarge, InputMismatch, PromptTooLong
from irx.runtime.arguments import check_device
from irx.runtime.decoder import Decoder
from irx.runtime.kernel import GraphKernel, Repeated
from irx.runtime.kv import KVState, Step
from irx.runtime.padding import Placement, place
from irx.runtime.prefix import Prefix
from irx.runtime.profile import Profile

_UNLIMITED = 1 << 40


class Session:
    """The cache of `batch` rows; belongs to one caller. Made by `Executable.session`."""

    def __init__(
        self, decoder: Decoder, batch: int, encoded: Mapping[str, Tensor] | None = None, prefix: Prefix | None = None
    ) -> None:
        if decoder.max_batch is not None and batch > decoder.max_batch:
            raise BatchTooLarge(batch, decoder.max_batch)
        if batch < 1:
            raise InputMismatch(f"a session of {batch} rows")
        self._decoder = decoder
        self._encoded = dict(encoded or {})
        self._all: dict[str, KVState] = decoder.states(batch)
        self._lengths = (0,) * batch
        self._repeated: tuple[GraphKernel, Repeated | None] | None = None
        self._behind = False  # repeated steps do not tell the states how long the rows are
        self._slots = 0  # that every dense state is known to have
        self._paged = any(state.paged is not None for state in self._all.values())
        self._forked = False  # others may move the pages
        self._planes: list[int] = []  # that the repeated step has noted, where others may
        self._prefix = prefix
        if prefix is not None:
            self._lengths = (prefix.length,) * batch
            for name, state in self._states.items():
                state.share(prefix.states[name])

    @property
    def batch(self) -> int:
        """Rows."""
        return len(self._lengths)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each row, padding not counted."""
        return self._lengths

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return max(self._lengths)

    def append(self, ids: Tensor, attention_mask: Tensor | None = None, *, logits_to_keep: int = 1) -> Tensor:
        """Add tokens i64 [B, S]; gives logits [B, keep, V] of the last `logits_to_keep` tokens, of all S for 0.

        `attention_mask` [B, S] is 1 for tokens and 0 for padding, on one side of each row; the last token of a padded
        row is its last real one. Raises InputMismatch, EmptyPrompt, MaskError, and PromptTooLong where a row would
        exceed `max_length`.
        """
        again = self._repeated_step(self._decoder.decode, ids) if attention_mask is None else None
        if again is not None:
            return again[self._decoder.logits[self._decoder.decode.name]]
        placed, after = self._begun(ids, attention_mask)
        logits = self._run(ids, placed, logits_to_keep)
        self._lengths = after
        return logits

    def top(self, ids: Tensor, count: int) -> tuple[Tensor, Tensor] | None:
        """Add one token to every row, ids i64 [B, 1]; gives the largest logits [B, 1, K], `count` of them or more, and
        their tokens i64 [B, 1, K], largest first, equal ones in the order of their tokens.

        None where that takes the logits of all tokens, because the program has no such step or not with so many:
        nothing has run then. Raises as `append` does.
        """
        decoder, kernel = self._decoder, self._decoder.top
        if kernel is None or count > decoder.most_chosen or ids.shape != (self.batch, 1):
            return None
        found = self._repeated_step(kernel, ids)
        if found is None:
            placed, after = self._begun(ids, None)
            tensors = self._step_inputs(ids, placed)
            found = self._step(kernel, tensors, once=False)
            self._lengths = after
        return found[0], found[1]

    def _repeated_step(self, kernel: GraphKernel, ids: Tensor) -> list[Tensor] | None:
        """One more token in every row, where the step before was of this graph too; None where it was not."""
        limit = self._decoder.max_length or _UNLIMITED
        last, again = self._repeated or (None, None)
        if again is None or last is not kernel or max(self._lengths) >= min(self._slots - 1, limit):
            return None
        if self._forked and self._planes != self._numbers():
            return None
        with self._decoder.lock:
            results = again(ids, self._lengths)
        if results is not None:
            self._lengths = tuple([length + 1 for length in self._lengths])
            self._behind = True
        return results

    @property
    def _states(self) -> dict[str, KVState]:
        """The KV states by name."""
        if self._behind:
            self._behind = False
            for state in self._all.values():
                state.lengths = self._lengths
        return self._all

    def profile(self, ids: Tensor, *, repeat: int = 5) -> Profile:
        """Where the time of appending `ids` [B, S] goes, each step with its median; the session stays as it was."""
        placed, _ = self._begun(ids, None)
        kernel, tensors = self._call(ids, placed, 1)
        try:
            states = {name: one if one.kept is None else one.clone() for name, one in self._states.items()}
            return self._decoder.profile(kernel, tensors, states, repeat)
        finally:
            self.truncate(self._lengths)

    def truncate(self, length: int | Sequence[int]) -> None:
        """Forget all but the first `length` tokens of every row, or of each row its own number.

        Raises TokensEvicted where that goes back behind the prompt by which a pass evicted tokens.
        """
        wanted = [length] * self.batch if isinstance(length, int) else list(length)
        if len(wanted) != self.batch or min(wanted) < 0:
            raise InputMismatch(f"{self.batch} rows cannot be truncated to {length}")
        left = tuple(min(pair) for pair in zip(self._lengths, wanted, strict=True))
        for state in self._states.values():
            state.check_length(left)
        self._lengths = left
        for state in self._states.values():
            state.truncate(self._lengths)
        if self._paged:  # what is given back is no longer known to be there
            self._slots = 0

    def fork(self) -> Session:
        """An independent session with the same tokens."""
        other = Session(self._decoder, self.batch, self._encoded)
        other._all = {name: state.clone() for name, state in self._states.items()}
        other._lengths, other._prefix = self._lengths, self._prefix
        if self._paged:  # the next token of either goes to a page that both read
            self._slots, self._forked, other._forked = 0, True, True
        return other

    def _numbers(self) -> list[int]:
        """Changes where a state moves."""
        return [state.keys.number for state in self._all.values()]

    def freeze(self) -> Prefix:
        """The tokens of this session, of one row, for others to begin with; the session itself is empty afterwards."""
        if self.batch != 1 or self._encoded or self._prefix is not None:
            raise InputMismatch("a prefix is one row of its own, of a model without an encoder")
        states, length = self._states, self.length
        self._all, self._lengths, self._slots = self._decoder.states(1), (0,), 0
        self._repeated = None
        return Prefix(states, length)

    def memory(self) -> int:
        """Bytes the cache takes now, as allocated."""
        return sum(state.bytes for state in self._states.values())

    def _begun(self, ids: Tensor, mask: Tensor | None) -> tuple[Placement, tuple[int, ...]]:
        """Where the tokens go and how long the rows are then; the states know it too."""
        self._check(ids, mask)
        placed = place(ids if ids.dim() == 2 else ids[..., 0], mask, self._lengths)
        after = tuple(n + count for n, count in zip(self._lengths, placed.counts, strict=True))
        limit = self._decoder.max_length
        if limit is not None and max(after) > limit:
            raise PromptTooLong(max(after), limit)
        self._begin(placed, after)
        return placed, after

    def _check(self, ids: Tensor, mask: Tensor | None) -> None:
        expected = self._decoder.ids
        if ids.dim() != expected.tensor.rank or ids.shape[0] != self.batch:
            raise InputMismatch(f"ids have shape {list(ids.shape)}, but the session needs [{self.batch}, length]")
        if ids.is_floating_point() != expected.dtype.startswith(("f", "bf")) or ids.dtype == torch.bool:
            raise InputMismatch(f"ids are {ids.dtype}, but {expected.type} is needed")
        for name, tensor in (("ids", ids), ("attention_mask", mask)):
            if tensor is not None and tensor.device.type != self._decoder.device.type:
                check_device(name, tensor, str(self._decoder.device))

    def _begin(self, placed: Placement, after: tuple[int, ...]) -> None:
        """Tell all states where the tokens of this step go, and make room."""
        start = self._lengths[0] if placed.uniform is None else placed.uniform
        step = Step(start, after, placed.uniform is not None)
        single = placed.positions.shape[1] == 1 and placed.counts == (1,) * self.batch
        for state in self._states.values():
            state.step = step
            if state.ring is not None:
                state.ring.prepare(state, single)
        if step.needed > self._slots or (self._paged and not single):
            self._reserve(step)
        step.room = self._slots

    def _reserve(self, step: Step) -> None:
        limit = (self._decoder.max_length or _UNLIMITED) + (step.needed - step.end)
        dense = [state for state in self._states.values() if state.positions is None and state.kept is None]
        for state in dense:
            state.admit(step, limit)
        self._slots = min((state.room(step) for state in dense), default=_UNLIMITED)

    def _run(self, ids: Tensor, placed: Placement, keep: int) -> Tensor:
        decoder = self._decoder
        kernel, tensors = self._call(ids, placed, keep)
        stepped = kernel is decoder.decode
        results = self._step(kernel, tensors, once=not stepped)
        logits = results[decoder.logits[kernel.name]]
        if stepped or decoder.slices_rows:
            return logits
        rows = wanted_rows(placed, keep, ids.shape[1]).to(decoder.device)
        return logits.gather(1, rows[..., None].expand(-1, -1, logits.shape[2]))

    def _step(self, kernel: GraphKernel, tensors: dict[str, Tensor], *, once: bool) -> list[Tensor]:
        """Run a graph, and keep what makes the same call again, unless it is run `once`.

        In one piece: a call of another session in between would be the one that is made again.
        """
        with self._decoder.lock:
            results = self._decoder.run(kernel, tensors, self._states)
            made = None if once else self._decoder.repeated(kernel, tensors, self._states)
        self._repeated = None if once else (kernel, made)
        self._planes = self._numbers() if self._forked else []
        return results

    def _call(self, ids: Tensor, placed: Placement, keep: int) -> tuple[GraphKernel, dict[str, Tensor]]:
        """The graph that appends these tokens, and its inputs besides the states."""
        decoder = self._decoder
        tensors = self._step_inputs(ids, placed)
        if ids.shape[1] == 1 and placed.counts == (1,) * self.batch:
            return decoder.decode, tensors
        if decoder.slices_rows:
            tensors[decoder.meta["rows"]] = wanted_rows(placed, keep, ids.shape[1]).to(decoder.device)
        return decoder.prefill, tensors

    def _step_inputs(self, ids: Tensor, placed: Placement) -> dict[str, Tensor]:
        """What every graph takes besides the states."""
        decoder = self._decoder
        return {decoder.ids.name: _integers(ids), "pos": placed.positions.to(decoder.device), **self._encoded}


def wanted_rows(placed: Placement, keep: int, count: int) -> Tensor:
    """Which of `count` tokens get logits, i64 [B, keep]: the last real ones of each row, or all where `keep` is 0.

    A row with fewer tokens repeats its first column.
    """
    if keep == 0 or keep > count:
        return torch.arange(count).expand(len(placed.last), count)
    last = torch.tensor(placed.last)[:, None]
    return (last + torch.arange(1 - keep, 1)).clamp_min(0)


def _integers(ids: Tensor) -> Tensor:
    return ids if ids.is_floating_point() else ids.long()
