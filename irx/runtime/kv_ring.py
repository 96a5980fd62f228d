"""States of which a window is read: each new token takes the slot of the oldest one, and the first tokens may stay.

A ring has `sinks` slots for the first tokens and `window` for the others: the token of position p is in slot p, or in
slot sinks + (p - sinks) % window. So slots say which positions they hold, and a row never needs more of them. While
many tokens are appended at once, whose windows reach back further than those of the last, a ring lies open: its tokens
in order, as in any state that lost some, and those of the call behind them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from irx.runtime.kv_kept import Kept

if TYPE_CHECKING:
    from irx.runtime.kv import KVState, Step


@dataclass(frozen=True)
class Ring(Kept):
    """What a state has that is no longer than this. See `Kept`; here slots tell positions, so none are stored."""

    window: int = 1
    sinks: int = 0

    @staticmethod
    def of(window: int, sinks: int, batch: int, heads: int, device: torch.device) -> Ring:
        """For states of so many rows and heads."""
        none = Kept.nothing(batch, heads, device)
        return Ring(none.positions, none.counts, none.chosen_at, none.floor, window, sinks)

    @property
    def slots(self) -> int:
        """Slots that a row needs at most."""
        return self.window + self.sinks

    @property
    def alike(self) -> object:
        """Equal for states whose tokens are in the same slots."""
        return self.window, self.sinks

    def used(self, lengths: tuple[int, ...]) -> tuple[int, ...]:
        """Slots in use."""
        return tuple(min(length, self.slots) for length in lengths)

    def slots_of(self, pos: Tensor) -> Tensor:
        """Where tokens of positions `pos` go; padding (-1) stays -1."""
        return torch.where(pos < self.sinks, pos, self.sinks + (pos - self.sinks) % self.window)

    def seen_of(self, pos: Tensor) -> Tensor:
        """The last slot that a token sees, which is the newest of its row."""
        return pos.clamp_max(self.slots - 1)

    def slot_positions(self, capacity: int, lengths: tuple[int, ...]) -> Tensor:
        """The position of the token in each slot, i64[B, G, capacity], -1 where there is none."""
        device = self.positions.device
        held = self._held(torch.arange(capacity, device=device), torch.tensor(lengths, device=device))
        return held[:, None].expand(-1, self.positions.shape[1], -1).contiguous()

    def follows(self, step: Step | None, lengths: tuple[int, ...]) -> bool:
        """True for one new token in every row."""
        return step is not None and all(n + 1 == after for n, after in zip(lengths, step.lengths, strict=True))

    def reserve(self, state: KVState, needed: int) -> None:
        """Room for rows of `needed` tokens."""
        state.reserve(min(needed, self.slots), self.slots)

    def least(self, lengths: tuple[int, ...]) -> tuple[int, ...]:
        """Rows whose oldest tokens are gone cannot go back."""
        return tuple(length if length > self.slots else 0 for length in lengths)

    def truncated(self, lengths: tuple[int, ...]) -> Kept:
        """Slots are those of positions, whatever the length."""
        return self

    def prepare(self, state: KVState, single: bool) -> None:
        """Close the ring of a state before every row gets one token, open it before rows get more."""
        if single:
            self.close(state)
        elif isinstance(state.kept, Ring):
            self._open(state)
        elif state.kept is None:
            state.kept = Kept.nothing(len(state.lengths), state.keys.heads, state.keys.device)

    def close(self, state: KVState) -> None:
        """Put the tokens that are still needed into the slots of their positions, and forget the others."""
        if isinstance(state.kept, Ring) or state.positions is not None:
            return
        count = min(max(state.lengths), self.slots)
        if state.capacity > count:
            device = state.keys.device
            lengths = torch.tensor(state.lengths, device=device)
            wanted = self._held(torch.arange(count, device=device), lengths).clamp_min(0)
            places = state.slot_positions()[:, 0]
            places = places.masked_fill(places < 0, torch.iinfo(torch.int64).max)
            index = torch.searchsorted(places.contiguous(), wanted.contiguous()).clamp_max(state.capacity - 1)
            state.keys, state.values = state.planes_at(index[:, None].expand(-1, state.keys.heads, -1))
        state.kept = self

    def _open(self, state: KVState) -> None:
        """Put the tokens in the order of their positions."""
        counts = self.used(state.lengths)
        places = self.slot_positions(max(counts), state.lengths)
        index = places.masked_fill(places < 0, torch.iinfo(torch.int64).max).argsort(dim=2, stable=True)
        state.keys, state.values = state.planes_at(index)
        state.kept = Kept(places.gather(2, index).int(), counts, state.lengths, self.least(state.lengths))

    def _held(self, slots: Tensor, lengths: Tensor) -> Tensor:
        """The positions that `slots` [T] hold in rows of `lengths` [B]: [B, T], -1 for none."""
        ends = lengths[:, None]
        turning = ends - 1 - (ends - 1 - slots) % self.window
        found = torch.where(slots < self.sinks, slots.expand(len(lengths), -1), turning)
        empty = (slots >= ends) | (slots >= self.slots)
        return found.masked_fill(empty, -1)
