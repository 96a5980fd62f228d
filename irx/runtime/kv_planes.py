"""Planes: the arrays that hold the keys, or the values, of a KV state, and how their slots lie in memory.

A plane is a tensor [B, G, blocks, channels, slots in a block, channels in a group]: 16 slots beside each other let a
kernel compare a query with 16 tokens without a horizontal sum, and groups of 2 or 4 channels (or slots) are what the
dot products of bf16 and int8 take. A dense plane is the plain [B, G, slots, channels].

Planes of int8 keep one f32 scale per token: its largest channel is 127.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from irx.ir.types import KVType
from irx.runtime.tensors import TORCH

ROUND = 64  # slots of a blocked plane are a multiple of this, so that kernels may read whole tiles


@dataclass(frozen=True)
class Arrangement:
    """`slots` in a block, `group` channels beside each other, channels padded with zeros to a multiple of `channels`.

    `offset` is added to what is stored: 128 for unsigned bytes.
    """

    slots: int = 1
    group: int = 1
    channels: int = 1
    offset: int = 0

    def width(self, channels: int) -> int:
        """Channels that are stored."""
        return -(-channels // self.channels) * self.channels

    def shape(self, slots: int, channels: int) -> tuple[int, ...]:
        """The stored axes of so many slots and channels."""
        return (slots // self.slots, self.width(channels) // self.group, self.slots, self.group)


# By the bytes of an element: keys for dot products over channels, values for sums over slots.
BLOCKED_KEYS = {
    4: Arrangement(16, 1, 1),
    2: Arrangement(16, 2, 2),
    1: Arrangement(16, 4, 4, offset=128),
}
BLOCKED_VALUES = {4: Arrangement(1, 1, 16), 2: Arrangement(2, 1, 16), 1: Arrangement(1, 1, 16)}
LAYOUTS = ("dense", "blocked")


_NUMBERS = itertools.count()


class Plane:
    """Tokens [B, G, slots, channels] in one arrangement: `tensor`, and `scale` f32 [B, G, slots] for int8.

    No two planes of a process have the same `number`: whoever has noted where a plane lies knows by it whether that
    still holds, and need not keep the plane.
    """

    __slots__ = ("arrangement", "channels", "number", "scale", "tensor")

    def __init__(self, tensor: Tensor, channels: int, arrangement: Arrangement, scale: Tensor | None = None) -> None:
        self.tensor = tensor
        self.channels = channels
        self.arrangement = arrangement
        self.scale = scale
        self.number = next(_NUMBERS)

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
        parts = (self.tensor, *(() if self.scale is None else (self.scale,)))
        return sum(part.numel() * part.element_size() for part in parts)

    def read(self, first: int, end: int) -> Tensor:
        """The tokens of slots [first, end): [B, G, n, channels], a copy."""
        block, lane = self._places(torch.arange(first, end, device=self.device))
        found = self._slotted()[:, :, block, lane].flatten(3)[..., : self.channels]
        if self.scale is None:
            return found
        return (found.float() - self.arrangement.offset) * self.scale[:, :, first:end, None]

    def write(self, first: int, tokens: Tensor) -> None:
        """Tokens [B, G, n, channels] to the slots from `first` on."""
        block, lane = self._places(torch.arange(first, first + tokens.shape[2], device=self.device))
        stored, scale = self._stored(tokens)
        self._slotted()[:, :, block, lane] = stored
        if self.scale is not None:
            self.scale[:, :, first : first + tokens.shape[2]] = scale

    def scatter(self, rows: Tensor, slots: Tensor, tokens: Tensor) -> None:
        """Tokens [B, G, n, channels] to slots [B, n], the same in all heads; `rows` is [B, 1], counting."""
        block, lane = self._places(slots)
        stored, scale = self._stored(tokens)
        self._slotted().permute(0, 2, 3, 1, 4, 5)[rows, block, lane] = stored.transpose(1, 2)
        if self.scale is not None:
            self.scale.transpose(1, 2)[rows, slots] = scale.transpose(1, 2)

    def put(self, rows: Tensor, heads: Tensor, slots: Tensor, tokens: Tensor) -> None:
        """Tokens [n, channels] to one slot each."""
        block, lane = self._places(slots)
        stored, scale = self._stored(tokens)
        self._slotted()[rows, heads, block, lane] = stored
        if self.scale is not None:
            self.scale[rows, heads, slots] = scale

    def grown(self, slots: int) -> Plane:
        """A copy with so many slots, new ones zero."""
        larger = empty_plane(self._like(), slots, self.channels, self.tensor.dtype, self.arrangement)
        larger.tensor[:, :, : self.tensor.shape[2]] = self.tensor
        if larger.scale is not None and self.scale is not None:
            larger.scale[:, :, : self.scale.shape[2]] = self.scale
        return larger

    def clone(self) -> Plane:
        """An independent copy."""
        scale = None if self.scale is None else self.scale.clone()
        return Plane(self.tensor.clone(), self.channels, self.arrangement, scale)

    def _like(self) -> tuple[int, int, torch.device]:
        return self.tensor.shape[0], self.heads, self.device

    def _places(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        return slots // self.arrangement.slots, slots % self.arrangement.slots

    def _slotted(self) -> Tensor:
        """The tensor with its slots before its channels: [B, G, blocks, slots in a block, channels, group]."""
        return self.tensor.permute(0, 1, 2, 4, 3, 5)

    def _stored(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [..., channels] as they are stored [..., channels, group], and their scales [...]."""
        scale = tokens.new_ones(tokens.shape[:-1], dtype=torch.float32)
        if self.scale is not None:
            tokens, scale = quantized(tokens)
            tokens = tokens + self.arrangement.offset
        width = self.arrangement.width(self.channels)
        padded = torch.nn.functional.pad(tokens, (0, width - self.channels), value=float(self.arrangement.offset))
        grouped = padded.reshape(*padded.shape[:-1], width // self.arrangement.group, self.arrangement.group)
        return grouped.to(self.tensor.dtype), scale


class DensePlane(Plane):
    """A plain tensor [B, G, slots, channels], read and written in place."""

    __slots__ = ()

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor, tensor.shape[3], Arrangement())

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

    def grown(self, slots: int) -> Plane:
        """A copy with so many slots, new ones zero."""
        shape = list(self.tensor.shape)
        shape[2] = slots
        larger = torch.zeros(shape, dtype=self.tensor.dtype, device=self.device)
        larger[:, :, : self.capacity] = self.tensor
        return DensePlane(larger)

    def clone(self) -> Plane:
        """An independent copy."""
        return DensePlane(self.tensor.clone())


def empty_plane(
    like: tuple[int, int, torch.device], slots: int, channels: int, dtype: torch.dtype, arrangement: Arrangement
) -> Plane:
    """Zeros for `like` = (batch, heads, device)."""
    batch, heads, device = like
    shape = (batch, heads, *arrangement.shape(slots, channels))
    tensor = torch.full(shape, arrangement.offset, dtype=dtype, device=device)
    scaled = dtype in (torch.int8, torch.uint8)
    scale = torch.zeros(batch, heads, slots, dtype=torch.float32, device=device) if scaled else None
    return Plane(tensor, channels, arrangement, scale)


def planes_of(kv: KVType, batch: int, device: torch.device, capacity: int) -> tuple[Plane, Plane]:
    """Empty planes of keys and values in the type's layout. Raises KeyError for a layout or dtype it does not have."""
    keys, values = arrangements(kv)
    capacity = rounded(capacity, keys)
    stored = TORCH[kv.dtype]
    if kv.layout == "dense" and kv.dtype != "i8":
        k = torch.zeros(batch, kv.heads, capacity, kv.k_dim, dtype=stored, device=device)
        return DensePlane(k), DensePlane(k.new_zeros(batch, kv.value_heads, capacity, kv.v_dim))
    k_stored = torch.uint8 if keys.offset else stored
    k_plane = empty_plane((batch, kv.heads, device), capacity, kv.k_dim, k_stored, keys)
    return k_plane, empty_plane((batch, kv.value_heads, device), capacity, kv.v_dim, stored, values)


def arrangements(kv: KVType) -> tuple[Arrangement, Arrangement]:
    """How keys and values of a type lie."""
    if kv.layout == "dense":
        return Arrangement(), Arrangement()
    if kv.layout != "blocked":
        raise KeyError(kv.layout)
    size = TORCH[kv.dtype].itemsize
    return BLOCKED_KEYS[size], BLOCKED_VALUES[size]


def rounded(slots: int, arrangement: Arrangement) -> int:
    """The number of slots to allocate for at least `slots`."""
    return slots if arrangement.slots == 1 else -(-slots // ROUND) * ROUND


def quantized(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [..., channels] as whole numbers from -127 to 127 (in f32), and the f32 scale of each [...]."""
    wide = tokens.float()
    scale = wide.abs().amax(-1) / 127
    inverse = torch.where(scale > 0, 1 / scale.clamp_min(torch.finfo(torch.float32).tiny), 0)
    return torch.round(wide * inverse[..., None]).clamp(-127, 127), scale
