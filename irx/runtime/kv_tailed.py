"""Planes of codes with a tail: old tokens as codes in groups, the newest as they are.

Keys: every channel of `group` tokens in a row has a float16 step and lowest value, [B, G, groups, channels]. Values:
every `group` channels of a token have them, [B, G, groups, slots]. Every token has a slot for its codes; the newest
`tail` of each row also lie, as they are, in a ring: the token of position p at p mod tail.

Values are coded when they come, keys when their group is complete; what a query takes as codes depends on positions
alone (`irx.ir.codes.TailedCode`), so a prompt may be divided as one likes.

A byte of codes holds several channels. Of keys, byte k of word w has channels 4 (32 / bits / 4 w + i) + k at bit
`bits` i, so that a shift and a mask leave four neighbours in a word; of values, byte l of 16 has channels 16 i + l.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from irx.ir.codes import TailedCode
from irx.ir.types import KVType
from irx.runtime.arena import copied, zeros
from irx.runtime.kv_codes import Plain, token_codes
from irx.runtime.kv_planes import Arrangement, Plane
from irx.runtime.tensors import TORCH

BLOCK = 16  # keys beside each other


@dataclass(frozen=True)
class Recent:
    """Tokens [rows, G, n, channels] as they are, of positions from `first` on, in some rows."""

    rows: slice
    first: int
    tokens: Tensor


class TailedPlane(Plane):
    """What keys and values have in common. `recent` are the tokens of the last call and the tail before it.

    `held` are tokens of rows as far as the plane knows. Rows of `lost` tokens, a tail of which the first one has lost
    its place to a token that was forgotten: no later query sees it as it was, and the next token takes the place again.
    """

    __slots__ = ("code", "held", "lost", "recent")

    def __init__(self, tensor: Tensor, channels: int, parameters: dict[str, Tensor], code: TailedCode) -> None:
        super().__init__(tensor, channels, self.stored_as, Plain(torch.uint8), parameters)
        self.code = code
        self.held = [0] * len(tensor)
        self.lost = [-1] * len(tensor)
        self.recent: list[Recent] = []

    stored_as: ClassVar[Arrangement]

    def append(self, rows: slice, start: int, tokens: Tensor) -> None:
        """Tokens [b, G, n, channels] of positions from `start` on, the same in all of these rows."""
        self._forget(rows, start)
        first = max(0, start - self.code.tail)
        full = torch.cat([self.ring(rows, first, start), tokens.to(self._tail.dtype)], 2)
        end = start + tokens.shape[2]
        self._encode(rows, first, start, full)
        kept = max(start, end - self.code.tail)
        self._put(rows, kept, full[:, :, kept - first :])
        self.held[rows] = [end] * len(self.held[rows])
        self.recent.append(Recent(rows, first, full))

    def newest(self, lengths: Sequence[int]) -> tuple[int, Tensor]:
        """(first, tokens [B, G, n, channels] of positions from `first` on): the last call's, or else the tail.

        Rows whose tokens begin later have zeros before, and behind their end.
        """
        recent = self.recent or [self._kept(slice(b, b + 1), n) for b, n in enumerate(lengths)]
        if len(recent) == 1:
            return recent[0].first, recent[0].tokens
        first, end = min(r.first for r in recent), max(r.first + r.tokens.shape[2] for r in recent)
        found = self._tail.new_zeros(len(self.tensor), self.heads, end - first, self.channels)
        for part in recent:
            at = part.first - first
            found[part.rows, :, at : at + part.tokens.shape[2]] = part.tokens
        return first, found

    def all(self, lengths: Sequence[int]) -> Tensor:
        """All tokens [B, G, capacity, channels], the newest as they are, the others as their codes say."""
        found = self.read(0, self.capacity)
        for b, length in enumerate(lengths):
            kept = self._kept(slice(b, b + 1), length)
            found[b, :, kept.first : length] = kept.tokens[0].float()
        return found

    def truncate(self, before: Sequence[int], after: Sequence[int]) -> None:
        """Forget tokens; those whose ring slots the forgotten ones had taken come back as their codes say."""
        self.recent = []
        for b, (held, length) in enumerate(zip(before, after, strict=True)):
            self.held[b] = held
            self._forget(slice(b, b + 1), length)

    def write(self, first: int, tokens: Tensor) -> None:
        """Tokens [B, G, n, channels] of positions from `first` on, in all rows."""
        self.append(slice(None), first, tokens)

    def scatter(self, rows: Tensor, slots: Tensor, tokens: Tensor) -> None:
        """Raises ValueError: rows of a plane with a tail are appended to one by one."""
        raise ValueError(f"tokens of {self.code} come in the order of their positions")

    def put(self, rows: Tensor, heads: Tensor, slots: Tensor, tokens: Tensor) -> None:
        """Raises ValueError, as `scatter` does."""
        self.scatter(rows, slots, tokens)

    def take(self, index: Tensor, slots: int = 0) -> Plane:
        """Raises ValueError: groups of tokens cannot be torn apart."""
        raise ValueError(f"tokens of {self.code} cannot be chosen one by one")

    def grown(self, slots: int) -> TailedPlane:
        """A copy with so many slots, new ones empty; the tail is the same tensor."""
        larger = self._empty(slots)
        larger.tensor[:, :, : self.tensor.shape[2]] = self.tensor
        for name in ("scale", "zero"):
            old = self.parameters[name]
            larger.parameters[name][:, :, : old.shape[2], : old.shape[3]] = old
        larger.parameters = {**larger.parameters, "tail": self._tail}
        larger.held, larger.lost, larger.recent = self.held, self.lost, self.recent
        return larger

    def clone(self) -> TailedPlane:
        """An independent copy."""
        parts = {name: part.clone() for name, part in self.parameters.items()}
        copy = type(self)(copied(self.tensor), self.channels, parts, self.code)
        copy.held, copy.lost = list(self.held), list(self.lost)
        return copy

    def ring(self, rows: slice, first: int, end: int) -> Tensor:
        """Tokens of positions [first, end), at most `tail` of them, as they are."""
        raise AssertionError

    @property
    def _tail(self) -> Tensor:
        return self.parameters["tail"]

    def _kept(self, rows: slice, length: int) -> Recent:
        first = max(0, length - self.code.tail)
        tokens = self.ring(rows, first, length)
        if length in self.lost[rows]:
            tokens = torch.cat([self.read(first, first + 1)[rows].to(tokens.dtype), tokens[:, :, 1:]], 2)
        return Recent(rows, first, tokens)

    def _forget(self, rows: slice, length: int) -> None:
        """Rows of more tokens have only `length` from here on."""
        self.recent = [] if rows == slice(None) else [r for r in self.recent if r.rows not in (rows, slice(None))]
        for b in range(len(self.held))[rows]:
            if self.held[b] > length:
                first = max(0, length + 1 - self.code.tail)
                stop = min(length, self.held[b] + (self.lost[b] == self.held[b]) - self.code.tail)
                if stop > first:
                    self._put(slice(b, b + 1), first, self.read(first, stop)[b : b + 1])
                self.lost[b] = length if length >= self.code.tail else -1
            self.held[b] = length

    def _slots_of(self, first: int, count: int) -> Tensor:
        return torch.arange(first, first + count, device=self.device) % self.code.tail

    def _put(self, rows: slice, first: int, tokens: Tensor) -> None:
        """Tokens of positions from `first` on into the ring."""
        raise AssertionError

    def _encode(self, rows: slice, first: int, start: int, full: Tensor) -> None:
        """Codes for what begins at position `start`, of tokens `full` from `first` on."""
        raise AssertionError

    def _empty(self, slots: int) -> TailedPlane:
        raise AssertionError


class TailedKeys(TailedPlane):
    """Bytes [B, G, blocks, words, 16, 4], parameters [B, G, groups, channels], tail [B, G, blocks, channels, 16].

    Channels are padded to whole words.
    """

    __slots__ = ()
    stored_as = Arrangement(BLOCK, 4, 4)

    def ring(self, rows: slice, first: int, end: int) -> Tensor:
        """Tokens of positions [first, end), at most `tail` of them, as they are."""
        slots = self._slots_of(first, end - first)
        return self._by_slot()[rows, :, slots // BLOCK, slots % BLOCK][..., : self.channels]

    def _by_slot(self) -> Tensor:
        return self._tail.permute(0, 1, 2, 4, 3)

    def _put(self, rows: slice, first: int, tokens: Tensor) -> None:
        slots = self._slots_of(first, tokens.shape[2])
        padded = pad(tokens, (0, self._tail.shape[3] - self.channels)).to(self._tail.dtype)
        self._by_slot()[rows, :, slots // BLOCK, slots % BLOCK] = padded

    def _encode(self, rows: slice, first: int, start: int, full: Tensor) -> None:
        group, end = self.code.group, first + full.shape[2]
        low, high = start // group, end // group
        if low == high:
            return
        tokens = full[:, :, low * group - first : high * group - first]
        codes, step, least = key_codes(tokens, self.code)
        self.parameters["scale"][rows, :, low:high, : self.channels] = step
        self.parameters["zero"][rows, :, low:high, : self.channels] = least
        block, lane = self._places(torch.arange(low * group, high * group, device=self.device))
        per = 8 // self.code.bits
        whole = pad(codes, (0, self._tail.shape[3] - self.channels)).to(torch.uint8)
        parts = whole.reshape(*whole.shape[:3], -1, per, 4)
        packed = sum(parts[..., i, :] << self.code.bits * i for i in range(per))
        assert isinstance(packed, Tensor)
        self._slotted()[rows, :, block, lane] = packed

    def read(self, first: int, end: int) -> Tensor:
        """The tokens of slots [first, end) as their codes say: f32 [B, G, n, channels]."""
        slots = torch.arange(first, end, device=self.device)
        block, lane = self._places(slots)
        found = self._slotted()[:, :, block, lane]
        per, mask = 8 // self.code.bits, 2**self.code.bits - 1
        codes = torch.stack([found >> self.code.bits * i & mask for i in range(per)], -2).flatten(3)
        group = slots // self.code.group
        step, low = (self.parameters[name][:, :, group, : self.channels].float() for name in ("scale", "zero"))
        return codes[..., : self.channels].float() * step + low

    def _empty(self, slots: int) -> TailedPlane:
        return _empty_keys(self._like(), slots, self.channels, self.code, self._tail.dtype)


class TailedValues(TailedPlane):
    """Bytes [B, G, slots, bytes], parameters [B, G, groups of channels, slots], tail [B, G, slots, padded channels]."""

    __slots__ = ()
    stored_as = Arrangement()

    def ring(self, rows: slice, first: int, end: int) -> Tensor:
        """Tokens of positions [first, end), at most `tail` of them, as they are."""
        return self._tail[rows][:, :, self._slots_of(first, end - first), : self.channels]

    def _put(self, rows: slice, first: int, tokens: Tensor) -> None:
        slots = self._slots_of(first, tokens.shape[2])
        padded = pad(tokens, (0, self._tail.shape[3] - self.channels)).to(self._tail.dtype)
        self._tail[rows, :, slots] = padded

    def _encode(self, rows: slice, first: int, start: int, full: Tensor) -> None:
        codes, step, low = value_codes(full[:, :, start - first :], self.code)
        end = start + codes.shape[2]
        self.parameters["scale"][rows, :, :, start:end] = step.transpose(2, 3)
        self.parameters["zero"][rows, :, :, start:end] = low.transpose(2, 3)
        per = 8 // self.code.bits
        whole = pad(codes, (0, self.tensor.shape[3] * per - self.channels)).to(torch.uint8)
        parts = whole.reshape(*whole.shape[:3], -1, per, BLOCK)
        packed = sum(parts[..., i, :] << self.code.bits * i for i in range(per))
        assert isinstance(packed, Tensor)
        self.tensor[rows, :, start:end] = packed.flatten(3)

    def read(self, first: int, end: int) -> Tensor:
        """The tokens of slots [first, end) as their codes say: f32 [B, G, n, channels]."""
        found = self.tensor[:, :, first:end].reshape(
            *self.tensor.shape[:2], end - first, self.tensor.shape[3] // BLOCK, BLOCK
        )
        per, mask = 8 // self.code.bits, 2**self.code.bits - 1
        codes = torch.stack([found >> self.code.bits * i & mask for i in range(per)], -2).flatten(3)
        groups = (
            codes[..., : self.channels]
            .float()
            .reshape(*codes.shape[:3], self.channels // self.code.group, self.code.group)
        )
        step, low = (self.parameters[n][..., first:end].transpose(2, 3)[..., None].float() for n in ("scale", "zero"))
        return (groups * step + low).flatten(3)

    def _empty(self, slots: int) -> TailedPlane:
        return _empty_values(self._like(), slots, self.channels, self.code, self._tail.dtype)


def key_codes(tokens: Tensor, code: TailedCode) -> tuple[Tensor, Tensor, Tensor]:
    """Whole groups of keys [b, G, n, D] as codes alike (in f32), steps and lowest values [b, G, n / group, D]."""
    batch, heads, count, channels = tokens.shape
    groups = tokens.reshape(batch, heads, count // code.group, code.group, channels).transpose(3, 4)
    codes, step, low = token_codes(groups, code.bits)
    return codes.transpose(3, 4).flatten(2, 3), step, low


def value_codes(tokens: Tensor, code: TailedCode) -> tuple[Tensor, Tensor, Tensor]:
    """Values [b, G, n, D] as codes alike (in f32), steps and lowest values [b, G, n, D / group]."""
    groups = tokens.reshape(*tokens.shape[:3], tokens.shape[3] // code.group, code.group)
    codes, step, low = token_codes(groups, code.bits)
    return codes.flatten(3), step, low


def tailed_planes(
    kv: KVType, code: TailedCode, batch: int, device: torch.device, capacity: int
) -> tuple[TailedPlane, TailedPlane]:
    """Empty planes of keys and values. Raises ValueError where values are no whole groups of channels."""
    if kv.v_dim % code.group:
        raise ValueError(f"values of {kv.v_dim} channels are no whole groups of {code.group}")
    dtype = TORCH[kv.dtype]
    keys = _empty_keys((batch, kv.heads, device), capacity, kv.k_dim, code, dtype)
    return keys, _empty_values((batch, kv.value_heads, device), capacity, kv.v_dim, code, dtype)


def _empty_keys(
    like: tuple[int, int, torch.device], slots: int, channels: int, code: TailedCode, dtype: torch.dtype
) -> TailedKeys:
    batch, heads, device = like
    words = -(-channels * code.bits // 32)
    padded = words * 32 // code.bits
    tensor = zeros((batch, heads, slots // BLOCK, words, BLOCK, 4), torch.uint8, device)
    tail = torch.zeros(batch, heads, -(-code.tail // BLOCK), padded, BLOCK, dtype=dtype, device=device)
    shape = (batch, heads, -(-slots // code.group), padded)
    return TailedKeys(tensor, channels, _parameters(shape, device) | {"tail": tail}, code)


def _empty_values(
    like: tuple[int, int, torch.device], slots: int, channels: int, code: TailedCode, dtype: torch.dtype
) -> TailedValues:
    batch, heads, device = like
    width = -(-channels * code.bits // (8 * BLOCK)) * BLOCK
    tensor = zeros((batch, heads, slots, width), torch.uint8, device)
    tail = torch.zeros(batch, heads, code.tail, -(-channels // BLOCK) * BLOCK, dtype=dtype, device=device)
    return TailedValues(
        tensor, channels, _parameters((batch, heads, channels // code.group, slots), device) | {"tail": tail}, code
    )


def _parameters(shape: tuple[int, ...], device: torch.device) -> dict[str, Tensor]:
    return {name: torch.zeros(shape, dtype=torch.float16, device=device) for name in ("scale", "zero")}
