"""KV states: the keys and values of one attention site, kept from call to call, and where the next tokens go.

A dense state holds the token of position p in slot p. `Step` says where the tokens of one call go; a session makes one
per call and all states share it, so that the common cases need no look at the positions: rows that are all equally
long are written by one copy and read without a mask. A state that no longer has all tokens knows which (`Kept`), and
one whose slots lie in no order carries all `positions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from irx.errors import SharedPrefix, TokensEvicted
from irx.ir.codes import tailed
from irx.ir.types import KVType
from irx.runtime.kv_kept import Kept
from irx.runtime.kv_paged import PagedPlane, PageTable
from irx.runtime.kv_planes import DensePlane, Plane, planes_of, rounded
from irx.runtime.kv_ring import Ring
from irx.runtime.kv_tailed import TailedKeys, TailedPlane, tailed_planes

SMALLEST = 64  # slots of the first bucket


@dataclass
class Step:
    """Where the tokens of one call go. `lengths` are the rows' tokens after it, `end` is the longest of them.

    `uniform`: all rows are equally long and the new tokens are slots [start, end). `masks` keeps what the sites of one
    call share. `room` is how many slots all states of the call are known to have: nobody else has to look.
    """

    start: int
    lengths: tuple[int, ...]
    uniform: bool
    masks: dict[object, Tensor | None] = field(default_factory=dict)
    room: int = field(default=0, compare=False)

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
    """Keys [B, G, capacity, D] and values [B, G', capacity, Dv] of one site. Appending changes it in place.

    They lie in planes (`irx.runtime.kv_planes`), by the layout of the site's KVType.
    """

    __slots__ = ("kept", "keys", "lengths", "paged", "positions", "prefix", "ring", "step", "values")

    def __init__(
        self, k: Tensor | Plane, v: Tensor | Plane, lengths: tuple[int, ...], positions: Tensor | None = None
    ) -> None:
        self.keys = DensePlane(k) if isinstance(k, Tensor) else k
        self.values = DensePlane(v) if isinstance(v, Tensor) else v
        self.lengths = lengths
        self.positions = positions
        self.kept: Kept | None = None
        self.paged: PageTable | None = None
        self.prefix: KVState | None = None
        self.ring: Ring | None = None
        self.step: Step | None = None

    @property
    def k(self) -> Tensor:
        """All keys [B, G, capacity, D]: of a dense state themselves, of others a copy."""
        return self._all(self.keys)

    @property
    def v(self) -> Tensor:
        """All values [B, G', capacity, Dv]: of a dense state themselves, of others a copy."""
        return self._all(self.values)

    def _all(self, plane: Plane) -> Tensor:
        return plane.all(self.lengths) if isinstance(plane, TailedPlane) else plane.read(0, self.capacity)

    def part(self, name: str) -> Tensor:
        """An array as it is stored: `k`, `v`, and of codes `k_scale`, `v_zero`, `k_tail` and so on, as they have them.

        `prefix_k` and so on are those of the prefix, its own where it has none; `pages` says which page of `k` and `v`
        holds which slots of a row. Raises KeyError for another.
        """
        if name == "pages" and self.paged is not None:
            return self.paged.tensor
        if name.startswith("prefix_"):
            return (self.prefix or self).part(name.removeprefix("prefix_"))
        side, _, parameter = name.partition("_")
        plane = {"k": self.keys, "v": self.values}[side]
        return plane.parameters[parameter] if parameter else plane.tensor

    @property
    def capacity(self) -> int:
        """Slots that are allocated."""
        return self.keys.capacity

    def number(self, name: str) -> int:
        """What kernels are told: `capacity`; `prefix_capacity` and `prefix_length`, 0 tokens without a prefix.

        `columns` are the pages that a row of the table has room for.
        """
        if name == "columns":
            return 0 if self.paged is None else self.paged.columns
        if name == "prefix_length":
            return 0 if self.prefix is None else self.prefix.lengths[0]
        return (self.prefix or self).capacity if name == "prefix_capacity" else self.capacity

    def share(self, prefix: KVState) -> None:
        """Let all rows begin with the tokens of a state of one row, which nobody changes any more."""
        length, batch = prefix.lengths[0], len(self.lengths)
        none = torch.zeros(batch, self.keys.heads, 0, dtype=torch.int32, device=self.keys.device)
        self.prefix, self.lengths = prefix, (length,) * batch
        self.kept = Kept(none, (0,) * batch, self.lengths, self.lengths)

    @property
    def bytes(self) -> int:
        """Bytes allocated; of pages that forks read too, a part."""
        if self.paged is not None:
            return self.paged.bytes
        positions = 0 if self.positions is None else self.positions.numel() * self.positions.element_size()
        return self.keys.bytes + self.values.bytes + positions + (0 if self.kept is None else self.kept.bytes)

    def reserve(self, slots: int, limit: int) -> None:
        """Make room for `slots`, in doubling buckets of at most `limit`. Slots are zero: masked ones must be finite."""
        if self.paged is not None:
            self.paged.extend(self.lengths, (slots,) * len(self.lengths))
            return
        if slots <= self.capacity:
            return
        size = rounded(bucket(slots, limit), self.keys.arrangement)
        self.keys, self.values = self.keys.grown(size), self.values.grown(size)
        if self.positions is not None:
            self.positions = _grown(self.positions, size)

    def admit(self, step: Step, limit: int) -> None:
        """Make room for the tokens of a step, of a call that lengthens rows. Raises OutOfPages."""
        if self.paged is None:
            self.reserve(step.needed, limit)
        else:
            self.paged.extend(self.lengths, step.lengths)

    def room(self, step: Step) -> int:
        """How long the longest row may become while all grow alike, behind a step that was admitted."""
        return self.capacity if self.paged is None else self.paged.room(step.lengths)

    def own(self) -> None:
        """Let nobody else read what may be written to anywhere."""
        if self.paged is not None:
            self.paged.own()

    def slot_positions(self) -> Tensor:
        """The position of the token in each slot, i64[B, G, capacity], -1 where there is none."""
        if self.positions is not None:
            return self.positions
        if self.kept is not None:
            return self.kept.slot_positions(self.capacity, self.lengths)
        slots = torch.arange(self.capacity, device=self.keys.device)
        lengths = torch.tensor(self.lengths, device=self.keys.device)
        row = torch.where(slots < lengths[:, None], slots, -1)
        return row[:, None].expand(-1, self.keys.heads, -1).contiguous()

    def take(self, index: Tensor) -> KVState:
        """A state of the slots `index` [B, G, K] of every row and head, stored alike; their positions travel along."""
        keys, values = self.planes_at(index)
        positions = self.slot_positions().gather(2, index)
        if keys.capacity > index.shape[2]:
            positions = _grown(positions, keys.capacity)
        return KVState(keys, values, self.lengths, positions)

    def planes_at(self, index: Tensor) -> tuple[Plane, Plane]:
        """Keys and values of the slots `index` [B, G, K], with as many slots each."""
        keys = self.keys.take(index)
        return keys, self.values.take(index, keys.capacity)

    def clone(self) -> KVState:
        """An independent copy; pages are copied when one of the two writes to them."""
        if self.paged is not None:
            forked = _paged(self.paged.fork(), self.lengths)
            forked.step = self.step
            return forked
        positions = None if self.positions is None else self.positions.clone()
        copy = KVState(self.keys.clone(), self.values.clone(), self.lengths, positions)
        copy.kept, copy.prefix, copy.ring = self.kept, self.prefix, self.ring
        copy.step = self.step
        return copy

    def truncate(self, lengths: tuple[int, ...]) -> None:
        """Forget each row's tokens of positions from its length on. Raises TokensEvicted; 0 in all rows always goes."""
        if self.kept is not None and self.prefix is None and not any(lengths):
            self.kept = Kept.nothing(len(lengths), self.keys.heads, self.keys.device)
        if self.kept is not None:
            self.check_length(lengths)
            self.kept = self.kept.truncated(lengths)
        for plane in (self.keys, self.values):
            if isinstance(plane, TailedPlane):
                plane.truncate(self.lengths, lengths)
        if self.paged is not None:
            self.paged.truncate(lengths)
        self.lengths = lengths
        if self.positions is not None:
            limits = torch.tensor(lengths, device=self.keys.device)[:, None, None]
            self.positions = torch.where(self.positions >= limits, -1, self.positions)

    def settle(self) -> None:
        """Let go of what only the sites of the call that is over have read."""
        for plane in (self.keys, self.values):
            if isinstance(plane, TailedPlane):
                plane.recent = []
        if self.ring is not None:
            self.ring.close(self)

    def check_length(self, lengths: tuple[int, ...]) -> None:
        """Raises TokensEvicted where rows of so many tokens would need others than those kept; SharedPrefix."""
        if self.prefix is not None and min(lengths) < self.prefix.lengths[0]:
            raise SharedPrefix(min(lengths), self.prefix.lengths[0])
        floor = (0,) * len(lengths) if self.kept is None or not any(lengths) else self.kept.least(self.lengths)
        for wanted, least in zip(lengths, floor, strict=True):
            if wanted < least:
                raise TokensEvicted(wanted, least)

    def loosen(self) -> None:
        """Carry all positions, so that slots may lie in any order from here on; they leave their pages."""
        self.positions, self.kept = self.slot_positions(), None
        if self.paged is not None:
            slots = torch.arange(self.capacity, device=self.keys.device)
            self.keys, self.values = self.planes_at(slots.expand(*self.positions.shape[:2], -1))
            self.paged = None


def empty_state(kv: KVType, batch: int, device: torch.device, capacity: int = 0) -> KVState:
    """A state without tokens, in the type's layout."""
    code = tailed(kv.code)
    if kv.page is not None:
        table = PageTable.of(kv, batch, device)
        table.extend((0,) * batch, (capacity,) * batch)
        return _paged(table, (0,) * batch)
    if code is None:
        state = KVState(*planes_of(kv, batch, device, capacity), (0,) * batch)
        state.ring = None if kv.window is None else Ring.of(kv.window, kv.sinks, batch, kv.heads, device)
        return state
    slots = rounded(capacity, TailedKeys.stored_as)
    return KVState(*tailed_planes(kv, code, batch, device, slots), (0,) * batch)


def _paged(table: PageTable, lengths: tuple[int, ...]) -> KVState:
    state = KVState(PagedPlane(table, "keys"), PagedPlane(table, "values"), lengths)
    state.paged = table
    return state


def bucket(slots: int, limit: int) -> int:
    """The capacity to allocate for `slots`: a power of two, but no more than `limit` unless that is too little."""
    size = SMALLEST
    while size < slots:
        size *= 2
    return max(slots, min(size, limit))


def _grown(positions: Tensor, slots: int) -> Tensor:
    larger = positions.new_full((*positions.shape[:2], slots), -1)
    larger[:, :, : positions.shape[2]] = positions
    return larger
