"""Which tokens a state holds that no longer has all of its sequence, and so in which slot the next one goes.

A row keeps its tokens side by side, in the order of their positions: first those that were chosen, each with its
position, then those that came after the choice, one behind the other. So the token of position p that came after it is
in slot p - shift, where `shift` is how many tokens of the row are gone. Heads may have chosen different tokens, but as
many. Kernels need nothing but the slots: what is held is older than what is appended.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from irx.runtime.kv import KVState, Step

_UNLIMITED = 1 << 40


@dataclass(frozen=True)
class Kept:
    """`positions` i32[B, G, K] of the tokens chosen, of which each row has `counts`; the sequence was `chosen_at` long.

    Tokens before `floor` cannot be taken back one by one: which of them stayed was decided by tokens after them.
    """

    positions: Tensor
    counts: tuple[int, ...]
    chosen_at: tuple[int, ...]
    floor: tuple[int, ...]

    @staticmethod
    def nothing(batch: int, heads: int, device: torch.device) -> Kept:
        """Of a state without tokens."""
        none = (0,) * batch
        return Kept(torch.zeros(batch, heads, 0, dtype=torch.int32, device=device), none, none, none)

    @cached_property
    def shift(self) -> tuple[int, ...]:
        """How many tokens of each row are gone."""
        return tuple(length - count for length, count in zip(self.chosen_at, self.counts, strict=True))

    @cached_property
    def common(self) -> int | None:
        """The shift of all rows, where it is one."""
        return self.shift[0] if len(set(self.shift)) == 1 else None

    @property
    def bytes(self) -> int:
        """Bytes allocated."""
        return self.positions.numel() * self.positions.element_size()

    @property
    def alike(self) -> object:
        """Equal for states whose tokens are in the same slots."""
        return self.shift

    def follows(self, step: Step | None, lengths: tuple[int, ...]) -> bool:
        """True where the tokens of a step come after all that were chosen, of rows of `lengths` before it."""
        if step is None:
            return False
        first = step.start if step.uniform else max(lengths)
        return first - max(self.shift) >= max(self.counts)

    def reserve(self, state: KVState, needed: int) -> None:
        """Room for rows of `needed` tokens."""
        state.reserve(needed - min(self.shift), _UNLIMITED)

    def least(self, lengths: tuple[int, ...]) -> tuple[int, ...]:
        """To how many tokens rows of `lengths` can be truncated."""
        return self.floor

    def used(self, lengths: tuple[int, ...]) -> tuple[int, ...]:
        """Slots in use of rows of so many tokens."""
        return tuple(length - gone for length, gone in zip(lengths, self.shift, strict=True))

    def chosen(self, pos: Tensor, step: Step) -> Kept:
        """After tokens of positions `pos` [B, K], a choice of those of a step of all rows, came behind all others."""
        before = (step.start,) * len(pos)
        used = self.used(before)[0]
        if pos.shape[1] == step.end - step.start:
            return self
        held = self.slot_positions(used, before)
        positions = torch.cat([held, pos[:, None].expand(-1, held.shape[1], -1).to(held.device)], 2)
        return Kept(positions.int(), (positions.shape[2],) * len(pos), step.lengths, self.floor)

    def slots_of(self, pos: Tensor) -> Tensor:
        """Where tokens of positions `pos` [B, S] that came after the choice are; padding (-1) stays -1."""
        if self.common is not None and pos.shape[1] == 1:
            return pos - self.common
        return torch.where(pos < 0, -1, pos - torch.tensor(self.shift, device=pos.device)[:, None])

    def seen_of(self, pos: Tensor) -> Tensor:
        """The last slot that such tokens see: their own."""
        return self.slots_of(pos)

    def slot_positions(self, capacity: int, lengths: tuple[int, ...]) -> Tensor:
        """The position of the token in each slot, i64[B, G, capacity], -1 where there is none."""
        batch, heads, chosen = self.positions.shape
        device = self.positions.device
        slots = torch.arange(capacity, device=device)
        gone, ends, counts = (torch.tensor(x, device=device)[:, None] for x in (self.shift, lengths, self.counts))
        behind = torch.where((slots >= counts) & (slots + gone < ends), slots + gone, -1)
        made = behind[:, None].expand(batch, heads, capacity).clone()
        width = min(chosen, capacity)
        held = (slots[:width] < counts)[:, None]
        made[:, :, :width] = torch.where(held, self.positions[:, :, :width].long(), made[:, :, :width])
        return made

    def truncated(self, lengths: tuple[int, ...]) -> Kept:
        """After all tokens of positions from `lengths` on were forgotten; nothing below `floor` is asked for."""
        if all(length >= at for length, at in zip(lengths, self.chosen_at, strict=True)):
            return self
        limits = torch.tensor(lengths, device=self.positions.device)[:, None]
        columns = torch.arange(self.positions.shape[2], device=self.positions.device)
        held = columns < torch.tensor(self.counts, device=self.positions.device)[:, None]
        left = ((self.positions[:, 0] < limits) & held).sum(1).tolist()
        at = tuple(min(pair) for pair in zip(lengths, self.chosen_at, strict=True))
        counts = [
            count if length >= chosen else fewer
            for count, length, chosen, fewer in zip(self.counts, lengths, self.chosen_at, left, strict=True)
        ]
        return Kept(self.positions, tuple(counts), at, self.floor)
