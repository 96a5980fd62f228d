"""How a linear's weight lies in GPU memory: in rows, so that neighbouring threads read neighbouring bytes.

One copy serves a single row and many. Weights `[N, K]`, by format:

    f32, bf16, f16   data    [N][depth]       the bits of the numbers; depth is K, or K padded so that rows are aligned
    packed           codes   uint32 [N][K/e]  see below
                     high    uint32 [N][K/h]  upper bits of 5- and 6-bit codes: element j of h has its bits at (32/h) j
                     scales, minima           float16 bits [N][K/group]; in two-level formats bytes, and then
                     super_scales, super_minima               float16 bits [N][K/256]

Codes come in chunks of `words` words (usually 4: what one instruction loads) whose elements share a scale: field i of
word t, at bit i * width, is element i * words + t of the chunk. So field i of all words is a run of elements of x, and
becomes floats with a shift, a mask and no conversion. What the numbers mean is in `coding`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from irx.backends.layouts.coding import CODINGS, Coding
from irx.backends.layouts.fields import Fields, split
from irx.backends.layouts.layout import Layout, room
from irx.backends.layouts.raw import join
from irx.ir.opdef import Array
from irx.ir.types import numpy_dtype

ALIGNMENT = 16
"""Bytes that one instruction of a thread loads, if the address is a multiple."""
PADDING = 0.05
WORD = 32
_BYTES_AT_ONCE = 1 << 22  # of source rows: bounds temporaries
_CODES = {"f32": "f4", "bf16": "u2", "f16": "u2"}


@dataclass(frozen=True)
class Part:
    """One array: numpy's dtype code, its shape, and the IR dtype a kernel reads it as."""

    code: str
    shape: tuple[int, int]
    dtype: str


@dataclass(frozen=True)
class Chunks(Layout):
    """One weight `[rows, columns]` in a format: f32, f16, bf16 or packed. `turned`: it is stored as [columns, rows]."""

    format: str
    rows: int
    columns: int
    turned: bool = False

    @property
    def coding(self) -> Coding | None:
        """How codes become values; None for floats."""
        return CODINGS.get(self.format)

    @property
    def depth(self) -> int:
        """Columns with the zeros that end a row of floats at an aligned place, where those are few."""
        if self.coding is not None:
            return self.columns
        whole = ALIGNMENT // numpy_dtype(self.format).itemsize
        padded = -(-self.columns // whole) * whole
        return padded if padded <= self.columns * (1 + PADDING) else self.columns

    @property
    def width(self) -> int:
        """Bits of a field of a word of codes."""
        return 8 if self._packed.bits == 8 else 4

    @property
    def fields(self) -> int:
        """Codes in a word."""
        return WORD // self.width

    @property
    def words(self) -> int:
        """Words of a chunk: as many as one scale serves, four at most."""
        return min(4, self._packed.group // self.fields)

    @property
    def chunk(self) -> int:
        """Elements of a chunk."""
        return self.fields * self.words

    @property
    def parts(self) -> dict[str, Part]:
        """The arrays by name."""
        if self.coding is None:
            return {"data": Part(_CODES[self.format], (self.rows, self.depth), self.format)}
        c, half = self._packed, ("u2", "f16")
        small = {"u8": ("u1", "u8"), "i8": ("i1", "i8")}[c.small] if c.super_group else half
        sizes = {"codes": ("u4", "i32", self.fields), "scales": (*small, c.group)}
        if c.high_bits:
            sizes["high"] = ("u4", "i32", c.high_in_word)
        if c.has_minimum:
            sizes["minima"] = (*small, c.group)
        if c.super_group:
            sizes["super_scales"] = (*half, c.super_group)
        if c.super_group and c.has_minimum:
            sizes["super_minima"] = (*half, c.super_group)
        return {name: Part(code, (self.rows, self.columns // n), dtype) for name, (code, dtype, n) in sizes.items()}

    @property
    def bytes(self) -> int:
        """What all arrays take together."""
        return sum(part.shape[0] * part.shape[1] * int(part.code[1]) for part in self.parts.values())

    def pack(self, weights: Sequence[Array]) -> dict[str, Array]:
        """The arrays of one weight `[rows, columns]`, raw rows where it is packed, converted a few rows at a time."""
        (weight,) = weights
        matrix = weight.T if self.turned else weight
        arrays = {name: room(part.shape, f"<{part.code}") for name, part in self.parts.items()}
        step = max(1, _BYTES_AT_ONCE // max(1, matrix.nbytes // self.rows))
        for first in range(0, self.rows, step):
            some = slice(first, first + step)
            for name, field in self._split(np.ascontiguousarray(matrix[some])).items():
                arrays[name][some, : field.shape[1]] = field
        return {name: array.view("<i4") if array.dtype == np.uint32 else array for name, array in arrays.items()}

    def unpack(self, arrays: Mapping[str, Array]) -> list[Array]:
        """The weight again, raw rows where it is packed: bit for bit what `pack` was given."""
        parts = {name: array.view(f"<{self.parts[name].code}") for name, array in arrays.items()}
        if self.coding is None:
            matrix = parts["data"].view(numpy_dtype(self.format))[:, : self.columns]
            return [np.ascontiguousarray(matrix.T if self.turned else matrix)]
        return [join(self._joined(parts), self.format, self.columns)]

    @property
    def _packed(self) -> Coding:
        assert self.coding is not None, f"{self.format} has no codes"
        return self.coding

    def _split(self, rows: Array) -> Fields:
        if self.coding is None:
            return {"data": rows if self.format == "f32" else rows.view(np.uint16)}
        found = dict(split(rows, self.format))
        found["codes"] = _ordered(_elements(found["codes"], self.width), self.width, self.words)
        if self.coding.high_bits:
            bits = self.coding.high_bits
            found["high"] = _run(_high_elements(found["high"], bits), bits)
        return found

    def _joined(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        codes = _disordered(parts["codes"], self.width, self.words)
        found = {**parts, "codes": _words(codes, self.width)}
        if bits := self._packed.high_bits:
            found["high"] = _high_words(_unrun(parts["high"], bits), bits)
        return found


def _elements(words: Any, width: int) -> Any:
    """Codes `[rows, K]` of the words that `split` gives: bytes, or the low halves of four bytes and then the high."""
    codes = words.view(np.uint8)
    if width == 8:
        return codes
    quads = codes.reshape(len(codes), -1, 1, 4)
    return np.concatenate([quads & 15, quads >> 4], axis=2).reshape(len(codes), -1)


def _words(elements: Any, width: int) -> Any:
    """The inverse of `_elements`."""
    if width == 4:
        quads = elements.reshape(len(elements), -1, 2, 4)
        elements = (quads[:, :, 0] | quads[:, :, 1] << np.uint8(4)).reshape(len(elements), -1)
    return np.ascontiguousarray(elements).view(np.uint32)


def _ordered(elements: Any, width: int, words: int) -> Any:
    """Words of chunks, field i of word t being element i * words + t."""
    chunks = elements.reshape(len(elements), -1, WORD // width, words)
    result = np.zeros((len(elements), chunks.shape[1], words), np.uint32)
    for i in range(WORD // width):
        result |= chunks[:, :, i].astype(np.uint32) << np.uint32(width * i)
    return result.reshape(len(elements), -1)


def _disordered(codes: Any, width: int, words: int) -> Any:
    """The inverse of `_ordered`."""
    shifts = np.arange(0, WORD, width, dtype=np.uint32)[:, None]
    chunks = codes.reshape(len(codes), -1, 1, words) >> shifts & np.uint32((1 << width) - 1)
    return chunks.astype(np.uint8).reshape(len(codes), -1)


def _high_elements(words: Any, bits: int) -> Any:
    """Upper bits `[rows, K]`: byte j of a word has those of element 4 i + j at bit `bits * i`."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    quads = words.view(np.uint8).reshape(len(words), -1, 1, 4) >> shifts & np.uint8((1 << bits) - 1)
    return quads.reshape(len(words), -1)


def _high_words(elements: Any, bits: int) -> Any:
    """The inverse of `_high_elements`."""
    quads = elements.reshape(len(elements), -1, 8 // bits, 4)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    joined = np.bitwise_or.reduce(quads << shifts, axis=2)
    return np.ascontiguousarray(joined.reshape(len(elements), -1)).view(np.uint32)


def _run(elements: Any, bits: int) -> Any:
    """Words with the bits of their elements one after the other, the first lowest."""
    shifts = np.arange(0, WORD, bits, dtype=np.uint32)
    words = elements.reshape(len(elements), -1, WORD // bits).astype(np.uint32) << shifts
    return np.bitwise_or.reduce(words, axis=2)


def _unrun(words: Any, bits: int) -> Any:
    """The inverse of `_run`."""
    shifts = np.arange(0, WORD, bits, dtype=np.uint32)
    elements = words[:, :, None] >> shifts & np.uint32((1 << bits) - 1)
    return elements.astype(np.uint8).reshape(len(words), -1)
