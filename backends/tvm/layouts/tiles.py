"""Weights of linears in tiles of `tile` output rows, so that one vector holds the same column of 16 rows.

One copy serves a single row and many. With T tiles (rows padded with zeros to whole tiles), by format:

    f32     data    float32 [T][K][tile]
    f16     data    uint16  [T][K][tile]           the bits of the halves
    bf16    data    int32   [T][K/2][tile]         two columns a word, the even one low; K padded to a multiple of 32
    packed  codes   int32   [T][K/w][tile]         words of w codes: 4 of 8 bits, 8 of 4 bits; see `fields`
            high    int32   [T][K/h][tile]         upper bits of 5- and 6-bit codes
            scales, minima  uint16 (float16 bits) [T][K/group][tile]; in two-level formats bytes, and then
            super_scales, super_minima            uint16 (float16 bits) [T][K/256][tile]

What the numbers mean is in `coding`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from irx.backends.layouts.coding import CODINGS, Coding
from irx.backends.layouts.fields import split
from irx.backends.layouts.layout import Layout, room
from irx.backends.layouts.raw import join
from irx.ir.opdef import Array
from irx.ir.types import numpy_dtype

TILES = (64, 32, 16)
PADDING = 0.05
_BYTES_AT_ONCE = 1 << 22  # of source rows: bounds temporaries, and keeps the transposition in the cache
_TIR = {"u4": "int32", "f4": "float32", "u2": "uint16", "u1": "uint8", "i1": "int8"}


@dataclass(frozen=True)
class Part:
    """One array: numpy's dtype code, and the shape `[tiles, n, tile]`."""

    code: str
    shape: tuple[int, int, int]

    @property
    def dtype(self) -> str:
        """TIR's dtype of the elements."""
        return _TIR[self.code]

    @property
    def bytes(self) -> int:
        """The size of the array."""
        return prod(self.shape) * int(self.code[1])


@dataclass(frozen=True)
class Tiles(Layout):
    """One weight `[rows, columns]` in a format: f32, f16, bf16 or packed. `turned`: it is stored as [columns, rows]."""

    format: str
    rows: int
    columns: int
    tile: int
    turned: bool = False

    @property
    def coding(self) -> Coding | None:
        """How codes become values; None for floats."""
        return CODINGS.get(self.format)

    @property
    def tiles(self) -> int:
        """How many tiles there are."""
        return -(-self.rows // self.tile)

    @property
    def depth(self) -> int:
        """Columns with padding: what a kernel may multiply, x being zero there."""
        return -(-self.columns // 32) * 32 if self.format == "bf16" else self.columns

    @property
    def parts(self) -> dict[str, Part]:
        """The arrays by name."""
        coding = self.coding
        if coding is None:
            return {"data": self._float_part()}
        small = {"u8": "u1", "i8": "i1"}[coding.small] if coding.super_group else "u2"
        sizes = {"codes": ("u4", coding.codes_in_word), "scales": (small, coding.group)}
        if coding.high_bits:
            sizes["high"] = ("u4", coding.high_in_word)
        if coding.has_minimum:
            sizes["minima"] = (small, coding.group)
        if coding.super_group:
            sizes["super_scales"] = ("u2", coding.super_group)
        if coding.super_group and coding.has_minimum:
            sizes["super_minima"] = ("u2", coding.super_group)
        return {name: Part(code, (self.tiles, self.columns // n, self.tile)) for name, (code, n) in sizes.items()}

    @property
    def main(self) -> str:
        """The array that holds most of the bytes."""
        return "data" if self.coding is None else "codes"

    @property
    def bytes(self) -> int:
        """What all arrays take together."""
        return sum(part.bytes for part in self.parts.values())

    def pack(self, weights: Sequence[Array]) -> dict[str, Array]:
        """The arrays of one weight `[rows, columns]`, raw rows where it is packed, converted a few tiles at a time."""
        (weight,) = weights
        matrix = weight.T if self.turned else weight
        arrays = {name: room(part.shape, f"<{part.code}") for name, part in self.parts.items()}
        step = max(1, _BYTES_AT_ONCE // max(1, matrix.nbytes // self.tiles))
        for first in range(0, self.tiles, step):
            self._pack_rows(matrix, first, min(first + step, self.tiles), arrays)
        return {name: array.view("<i4") if array.dtype == np.uint32 else array for name, array in arrays.items()}

    def unpack(self, arrays: Mapping[str, Array]) -> list[Array]:
        """The weight again, raw rows where it is packed: bit for bit what `pack` was given."""
        fields = {name: _rows(array.view(f"<{self.parts[name].code}"), self.rows) for name, array in arrays.items()}
        if self.coding is not None:
            return [join(fields, self.format, self.columns)]
        matrix = fields["data"].view(numpy_dtype(self.format))[:, : self.columns]
        return [np.ascontiguousarray(matrix.T if self.turned else matrix)]

    def _pack_rows(self, matrix: Array, first: int, last: int, arrays: dict[str, Array]) -> None:
        """Fill tiles `first` to `last` of every array."""
        rows = matrix[first * self.tile : last * self.tile]
        for name, field in self._fields(rows).items():
            target = arrays[name][first:last]
            whole = len(rows) // self.tile
            if whole:
                target[:whole] = _turned(field[: whole * self.tile], whole, self.tile)
            if rest := len(rows) - whole * self.tile:
                target[whole, :, :rest] = field[whole * self.tile :].swapaxes(0, 1)

    def _fields(self, rows: Array) -> dict[str, Any]:
        """What rows have of each array, `[rows, n]`."""
        if self.coding is not None:
            return dict(split(np.ascontiguousarray(rows), self.format))
        if self.format == "bf16":
            pairs = np.zeros((len(rows), self.depth), np.uint16)
            pairs[:, : self.columns] = np.ascontiguousarray(rows).view(np.uint16)
            return {"data": pairs.view(np.uint32)}
        return {"data": np.ascontiguousarray(rows).view(np.uint16) if self.format == "f16" else rows}

    def _float_part(self) -> Part:
        if self.format == "bf16":
            return Part("u4", (self.tiles, self.depth // 2, self.tile))
        return Part({"f32": "f4", "f16": "u2"}[self.format], (self.tiles, self.columns, self.tile))


def _turned(field: Any, tiles: int, tile: int) -> Any:
    """`[tiles * tile, n]` as `[tiles, n, tile]`."""
    return field.reshape(tiles, tile, -1).swapaxes(1, 2)


def _rows(array: Any, rows: int) -> Any:
    """`[tiles, n, tile]` as `[rows, n]`, without the padding."""
    return np.ascontiguousarray(array.swapaxes(1, 2)).reshape(-1, array.shape[1])[:rows]


def tiles_for(format: str, rows: int, columns: int, *, tile: int = TILES[0], turned: bool = False) -> Tiles:
    """The layout of a weight: the widest tile up to `tile` that wastes at most 5 %, or the narrowest."""
    allowed = [t for t in TILES if t <= tile]
    fitting = (t for t in allowed if -(-rows // t) * t <= rows * (1 + PADDING))
    return Tiles(format, rows, columns, next(fitting, allowed[-1]), turned)
