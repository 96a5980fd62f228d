"""KV states: the keys and values of one attention site, kept from call to call, and where the next tokens go.

A dense state holds the token of position p in slot p. `Step` says where the tokens of one call go; a session makes one
per call and all states share it, so that the common cases need no look at the positions: rows that are all equally
long are written by one copy and read without a mask. States that were evicted or gathered carry their positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from irx.ir.types import KVType
from irx.runtime.tensors import TORCH

SMALLEST = 64  # slots of the first bucket


@dataclass
class Step:
    """Where the tokens of one call go. `lengths` are the rows' tokens after it, `end` is the longest of them.

    `uniform`: all rows are equally long and the new tokens are slots [start, end). `masks` keeps what the sites of one
    call share.
    """

    start: int
    lengths: tuple[int, ...]
    uniform: bool
    masks: dict[object, Tensor | None] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """Tokens of the longest row after the call."""
        return max(self.lengths)

    @property
    def needed(self) -> int:
        """Slots a state must have: rows of unequal length need one more, into which padding is written."""
        return self.end if self.uniform else self.end + 1


def step_of(lengths: Sequence[int], positions: Sequence[Sequence[int]]) -> Step | None:
    """The step that puts `positions` (-1: padding) after rows of `lengths` tokens; None where it would leave holes."""
    after: list[int] = []
    for length, row in zip(lengths, positions, strict=True):
        new = [p for p in row if p >= 0]
        if new and (new[0] > length or new != list(range(new[0], new[0] + len(new)))):
            return None
        after.append(max(length, new[-1] + 1) if new else length)
    same = len(set(after)) == 1 and all(list(row) == list(positions[0]) for row in positions) and min(positions[0]) >= 0
    return Step(positions[0][0], tuple(after), same and positions[0][-1] + 1 == after[0])


class KVState:
    """Keys [B, G, capacity, D] and values [B, G', capacity, Dv] of one site. Appending changes it in place."""

    __slots__ = ("k", "lengths", "positions", "step", "v")

    def __init__(self, k: Tensor, v: Tensor, lengths: tuple[int, ...], positions: Tensor | None = None) -> None:
        self.k = k
        self.v = v
        self.lengths = lengths
        self.positions = positions
        self.step: Step | None = None

    @property
    def capacity(self) -> int:
        """Slots that are allocated."""
        return self.k.shape[2]

    @property
    def bytes(self) -> int:
        """Bytes allocated."""
        parts = (self.k, self.v, *([self.positions] if self.positions is not None else []))
        return sum(part.numel() * part.element_size() for part in parts)

    def reserve(self, slots: int, limit: int) -> None:
        """Make room for `slots`, in doubling buckets of at most `limit`. Slots are zero: masked ones must be finite."""
        if slots <= self.capacity:
            return
        size = bucket(slots, limit)
        self.k, self.v = _grown(self.k, size, 0), _grown(self.v, size, 0)
        if self.positions is not None:
            self.positions = _grown(self.positions, size, -1)

    def slot_positions(self) -> Tensor:
        """The position of the token in each slot, i64[B, G, capacity], -1 where there is none."""
        if self.positions is not None:
            return self.positions
        slots = torch.arange(self.capacity, device=self.k.device)
        lengths = torch.tensor(self.lengths, device=self.k.device)
        row = torch.where(slots < lengths[:, None], slots, -1)
        return row[:, None].expand(-1, self.k.shape[1], -1).contiguous()

    def take(self, index: Tensor) -> KVState:
        """A state of the slots `index` [B, G, K] of every row and head; their positions travel along."""
        k = self.k.gather(2, index[..., None].expand(-1, -1, -1, self.k.shape[3]))
        v = self.v.gather(2, index[..., None].expand(-1, -1, -1, self.v.shape[3]))
        return KVState(k, v, self.lengths, self.slot_positions().gather(2, index))

    def clone(self) -> KVState:
        """An independent copy."""
        positions = None if self.positions is None else self.positions.clone()
        return KVState(self.k.clone(), self.v.clone(), self.lengths, positions)

    def truncate(self, lengths: tuple[int, ...]) -> None:
        """Forget each row's tokens of positions from its length on."""
        self.lengths = lengths
        if self.positions is not None:
            limits = torch.tensor(lengths, device=self.k.device)[:, None, None]
            self.positions = torch.where(self.positions >= limits, -1, self.positions)


def empty_state(kv: KVType, batch: int, device: torch.device, capacity: int = 0) -> KVState:
    """A state without tokens."""
    k = torch.zeros(batch, kv.heads, capacity, kv.k_dim, dtype=TORCH[kv.dtype], device=device)
    v = torch.zeros(batch, kv.value_heads, capacity, kv.v_dim, dtype=TORCH[kv.dtype], device=device)
    return KVState(k, v, (0,) * batch)


def bucket(slots: int, limit: int) -> int:
    """The capacity to allocate for `slots`: a power of two, but no more than `limit` unless that is too little."""
    size = SMALLEST
    while size < slots:
        size *= 2
    return max(slots, min(size, limit))


def _grown(tensor: Tensor, slots: int, value: int) -> Tensor:
    shape = list(tensor.shape)
    shape[2] = slots
    larger = torch.full(shape, value, dtype=tensor.dtype, device=tensor.device)
    larger[:, :, : tensor.shape[2]] = tensor
    return larger
