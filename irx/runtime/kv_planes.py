"""Planes: the arrays that hold the keys, or the values, of a KV state, and how their slots lie in memory.

A plane is a tensor [B, G, blocks, elements, slots in a block, elements in a group]: 16 slots beside each other let a
kernel compare a query with 16 tokens without a horizontal sum, and groups of 2 or 4 channels (or slots) are what the
dot products of bf16 and int8 take. A dense plane is the plain [B, G, slots, channels].

What an element is, a channel as it is or codes of some, is said by `irx.runtime.kv_codes`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from irx.ir.codes import CODES
from irx.ir.types import KVType
from irx.runtime.arena import copied, zeros
from irx.runtime.kv_codes import Plain, SymmetricBytes, TokenCodes
from irx.runtime.tensors import TORCH

ROUND = 64  # slots of a blocked plane are a multiple of this, so that kernels may read whole tiles


@dataclass(frozen=True)
class Arrangement:
    """`slots` in a block, `group` elements beside each other, elements padded to a multiple of `padding`."""

    slots: int = 1
    group: int = 1
    padding: int = 1

    def width(self, elements: int) -> int:
        """Elements that are stored."""
        return -(-elements // self.padding) * self.padding

    def shape(self, slots: int, elements: int) -> tuple[int, ...]:
        """The stored axes of so many slots and elements."""
        return (slots // self.slots, self.width(elements) // self.group, self.slots, self.group)


# By the bytes of an element: keys for dot products over channels, values for sums over slots.
BLOCKED_KEYS = {4: Arrangement(16, 1, 1), 2: Arrangement(16, 2, 2), 1: Arrangement(16, 4, 4)}
BLOCKED_VALUES = {4: Arrangement(1, 1, 16), 2: Arrangement(2, 1, 16), 1: Arrangement(1, 1, 16)}
LAYOUTS = ("dense", "blocked")


_NUMBERS = itertools.count()


def numbered() -> int:
    """A number that no plane has had."""
    return next(_NUMBERS)


class Plane:
    """Tokens [B, G, slots, channels] in one arrangement and coding: `tensor`, and `parameters` [B, G, slots] by name.

    No two planes of a process have the same `number`: whoever has noted where a plane lies knows by it whether that
    still holds, and need not keep the plane.
    """

    __slots__ = ("arrangement", "channels", "coding", "number", "parameters", "tensor")

    def __init__(
        self, tensor: Tensor, channels: int, arrangement: Arrangement, coding: Plain, parameters: Mapping[str, Tensor]
    ) -> None:
        self.tensor = tensor
        self.channels = channels
        self.arrangement = arrangement
        self.coding = coding
        self.parameters = parameters
        self.number = numbered()

    @property
    def capacity(self) -> int:
        """Slots that are allocated."""
        return self.tensor.shape[2] * self.arrangement.slots

    @property
    def heads(self) -> int:
        """Heads."""
        return self.tensor.shape[1]

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.tensor.device

    @property
    def bytes(self) -> int:
        """Bytes allocated."""
        return sum(part.numel() * part.element_size() for part in (self.tensor, *self.parameters.values()))

    def read(self, first: int, end: int) -> Tensor:
        """The tokens of slots [first, end): [B, G, n, channels], a copy."""
        block, lane = self._places(torch.arange(first, end, device=self.device))
        found = self._slotted()[:, :, block, lane].flatten(3)
        return self.coding.decode(found, self.channels, {n: x[:, :, first:end] for n, x in self.parameters.items()})

    def write(self, first: int, tokens: Tensor) -> None:
        """Tokens [B, G, n, channels] to the slots from `first` on."""
        block, lane = self._places(torch.arange(first, first + tokens.shape[2], device=self.device))
        stored, parameters = self._stored(tokens)
        self._slotted()[:, :, block, lane] = stored
        for name, found in parameters.items():
            self.parameters[name][:, :, first : first + tokens.shape[2]] = found

    def scatter(self, rows: Tensor, slots: Tensor, tokens: Tensor) -> None:
        """Tokens [B, G, n, channels] to slots [B, n], the same in all heads; `rows` is [B, 1], counting."""
        block, lane = self._places(slots)
        stored, parameters = self._stored(tokens)
        self._slotted().permute(0, 2, 3, 1, 4, 5)[rows, block, lane] = stored.transpose(1, 2)
        for name, found in parameters.items():
            self.parameters[name].transpose(1, 2)[rows, slots] = found.transpose(1, 2)

    def put(self, rows: Tensor, heads: Tensor, slots: Tensor, tokens: Tensor) -> None:
        """Tokens [n, channels] to one slot each."""
        block, lane = self._places(slots)
        stored, parameters = self._stored(tokens)
        self._slotted()[rows, heads, block, lane] = stored
        for name, found in parameters.items():
            self.parameters[name][rows, heads, slots] = found

    def take(self, index: Tensor, slots: int = 0) -> Plane:
        """A plane of the slots `index` [B, G, K] of every row and head, stored as they are here, `slots` at least."""
        batch, heads, count = index.shape
        slots = max(slots, rounded(count, self.arrangement))
        made = empty_plane((batch, heads, self.device), slots, self.channels, self.coding, self.arrangement)
        rows, columns = (torch.arange(n, device=self.device) for n in (batch, heads))
        places = (rows[:, None, None], columns[:, None], *self._places(index))
        target = (rows[:, None, None], columns[:, None], *self._places(torch.arange(count, device=self.device)))
        made._slotted()[target] = self._slotted()[places]
        for name, found in self.parameters.items():
            made.parameters[name][:, :, :count] = found.gather(2, index)
        return made

    def grown(self, slots: int) -> Plane:
        """A copy with so many slots, new ones empty."""
        larger = empty_plane(self._like(), slots, self.channels, self.coding, self.arrangement)
        larger.tensor[:, :, : self.tensor.shape[2]] = self.tensor
        for name, found in self.parameters.items():
            larger.parameters[name][:, :, : found.shape[2]] = found
        return larger

    def clone(self) -> Plane:
        """An independent copy."""
        parameters = {name: found.clone() for name, found in self.parameters.items()}
        return Plane(copied(self.tensor), self.channels, self.arrangement, self.coding, parameters)

    def _like(self) -> tuple[int, int, torch.device]:
        return self.tensor.shape[0], self.heads, self.device

    def _places(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        return slots // self.arrangement.slots, slots % self.arrangement.slots

    def _slotted(self) -> Tensor:
        """The tensor with its slots before its elements: [B, G, blocks, slots in a block, elements, group]."""
        return self.tensor.permute(0, 1, 2, 4, 3, 5)

    def _stored(self, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Tokens [..., channels] as they are stored [..., elements, group], and their parameters [...]."""
        elements, parameters = self.coding.encode(tokens)
        width = self.arrangement.width(elements.shape[-1])
        padded = pad(elements, (0, width - elements.shape[-1]), value=float(self.coding.empty))
        group = self.arrangement.group
        return padded.reshape(*padded.shape[:-1], width // group, group), parameters


class DensePlane(Plane):
    """A plain tensor [B, G, slots, channels], read and written in place."""

    __slots__ = ()

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor, tensor.shape[3], Arrangement(), Plain(tensor.dtype), {})

    def read(self, first: int, end: int) -> Tensor:
        """A view."""
        return self.tensor[:, :, first:end]

    def write(self, first: int, tokens: Tensor) -> None:
        """Tokens [B, G, n, channels] to the slots from `first` on."""
        self.tensor[:, :, first : first + tokens.shape[2]] = tokens

    def scatter(self, rows: Tensor, slots: Tensor, tokens: Tensor) -> None:
        """Tokens [B, G, n, channels] to slots [B, n]."""
        self.tensor.transpose(1, 2)[rows, slots] = tokens.transpose(1, 2).to(self.tensor.dtype)

    def put(self, rows: Tensor, heads: Tensor, slots: Tensor, tokens: Tensor) -> None:
        """Tokens [n, channels] to one slot each."""
        self.tensor[rows, heads, slots] = tokens.to(self.tensor.dtype)

    def take(self, index: Tensor, slots: int = 0) -> Plane:
        """A dense plane of the slots `index` [B, G, K] of every row and head."""
        return DensePlane(self.tensor.gather(2, index[..., None].expand(-1, -1, -1, self.channels)))

    def grown(self, slots: int) -> Plane:
        """A copy with so many slots, new ones zero."""
        shape = list(self.tensor.shape)
        shape[2] = slots
        larger = zeros(shape, self.tensor.dtype, self.device)
        larger[:, :, : self.capacity] = self.tensor
        return DensePlane(larger)

    def clone(self) -> Plane:
        """An independent copy."""
        return DensePlane(copied(self.tensor))


def empty_plane(
    like: tuple[int, int, torch.device], slots: int, channels: int, coding: Plain, arrangement: Arrangement
) -> Plane:
    """Slots without tokens for `like` = (batch, heads, device)."""
    batch, heads, device = like
    shape = (batch, heads, *arrangement.shape(slots, coding.width(channels)))
    tensor = zeros(shape, coding.dtype, device)
    if coding.empty:
        tensor.fill_(coding.empty)
    kinds = coding.parameters.items()
    parameters = {name: zeros((batch, heads, slots), dtype, device) for name, dtype in kinds}
    return Plane(tensor, channels, arrangement, coding, parameters)


def planes_of(kv: KVType, batch: int, device: torch.device, capacity: int) -> tuple[Plane, Plane]:
    """Empty planes of keys and values in the type's layout. Raises KeyError for a layout or dtype it does not have."""
    keys, values = codings(kv)
    key_blocks, value_blocks = arrangements(kv, keys.dtype.itemsize)
    capacity = rounded(capacity, key_blocks)
    if kv.layout == "dense" and type(keys) is Plain:
        k = zeros((batch, kv.heads, capacity, kv.k_dim), keys.dtype, device)
        return DensePlane(k), DensePlane(zeros((batch, kv.value_heads, capacity, kv.v_dim), keys.dtype, device))
    k_plane = empty_plane((batch, kv.heads, device), capacity, kv.k_dim, keys, key_blocks)
    return k_plane, empty_plane((batch, kv.value_heads, device), capacity, kv.v_dim, values, value_blocks)


def codings(kv: KVType) -> tuple[Plain, Plain]:
    """What the elements of keys and values are. Raises KeyError for a dtype that no state has."""
    blocked = kv.layout == "blocked"
    if kv.code is not None:
        bits = CODES[kv.code]
        keys, values = (4, 16) if blocked else (1, 1)  # what kernels find in the halves of a register's bytes
        return TokenCodes(torch.uint8, bits, keys), TokenCodes(torch.uint8, bits, values)
    if kv.dtype == "i8":
        signed = SymmetricBytes(torch.int8)
        return SymmetricBytes(torch.uint8, 128) if blocked else signed, signed
    return Plain(TORCH[kv.dtype]), Plain(TORCH[kv.dtype])


def arrangements(kv: KVType, element_bytes: int) -> tuple[Arrangement, Arrangement]:
    """How elements of keys and values of a type lie."""
    if kv.layout == "dense":
        return Arrangement(), Arrangement()
    if kv.layout != "blocked":
        raise KeyError(kv.layout)
    return BLOCKED_KEYS[element_bytes], BLOCKED_VALUES[element_bytes]


def rounded(slots: int, arrangement: Arrangement) -> int:
    """The number of slots to allocate for at least `slots`."""
    return slots if arrangement.slots == 1 else -(-slots // ROUND) * ROUND
