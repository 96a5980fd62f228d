"""Packed codes as floats inside a kernel, without a conversion instruction.

A code q of b bits, put at the top of the mantissa of 1.0, is the float 1 + q / 2^b. A product sums those; as

    scale * (q - zero) + minimum = (2^b scale) * (1 + q / 2^b) - (2^b + zero) scale + minimum

what is wanted follows from that sum and from the sum of x, once for all elements that share a scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from irx.backends.layouts.coding import Coding
from irx.backends.triton.templates.linear_layout import Chunks
from irx.backends.triton.templates.linear_shape import wide
from irx.backends.triton.writer import Writer

MANTISSA = 23
ONE = "one"
"""The name of the bits of 1.0 in a kernel's text, see `emit_one`."""


@dataclass(frozen=True)
class Codes:
    """Names in a kernel: `words` [rows, chunks, words], `high` likewise (empty without), `scale`, `minimum` [rows,
    chunks] as float32 (`minimum` empty without)."""

    layout: Chunks
    words: str
    high: str
    scale: str
    minimum: str

    @property
    def coding(self) -> Coding:
        """How codes become values."""
        assert self.layout.coding is not None
        return self.layout.coding

    @property
    def steps(self) -> int:
        """2^b: the float of a code is 1 + code / steps."""
        return 1 << self.coding.bits


def emit_one(w: Writer, opaque: str) -> None:
    """The bits of 1.0. `opaque` is an int that is never negative, but not for what the assembler knows.

    A bitwise and with one constant and an or with another is one instruction, unless both constants are known.
    """
    w(f"{ONE} = 0x3F800000 | ({opaque} >> 31)")


def emit_codes(w: Writer, layout: Chunks, arrays: Mapping[str, str], row: str, chunk: str, mask: str) -> Codes:
    """Load the chunks `chunk` [C] of the rows `row` [R], and their scales.

    `arrays` are the names of pointers by part; `mask` is [R, C], or empty. Needs `rt`, the numbers of a chunk's words.
    """
    c, steps = layout.coding, layout.columns // layout.chunk
    assert c is not None
    deep = f", mask={mask}[:, :, None], other=0" if mask else ""
    start = f"{row}{wide(layout.rows, layout.columns)}"
    at = f"({start} * {steps})[:, None, None] + {chunk}[None, :, None]"
    words = w.let(f"tl.load({arrays['codes']} + (({at}) * {layout.words} + rt[None, None, :]){deep})", "q")
    high = ""
    if c.high_bits:
        shift = f"rt[None, None, :] * {c.high_bits}"
        high = w.let(f"tl.load({arrays['high']} + ({at}){deep}) >> ({shift})", "h")
    scale = _scale(w, layout, arrays, ("scales", "super_scales"), row, chunk, mask)
    minimum = _scale(w, layout, arrays, ("minima", "super_minima"), row, chunk, mask) if c.has_minimum else ""
    if minimum and c.super_group:
        minimum = w.let(f"-{minimum}", "m")
    return Codes(layout, words, high, scale, minimum)


def _scale(
    w: Writer, layout: Chunks, arrays: Mapping[str, str], names: tuple[str, str], row: str, chunk: str, mask: str
) -> str:
    """The scales (or minima) of chunks as float32 [R, C]."""
    coding = layout.coding
    assert coding is not None
    value = _grouped(layout, arrays[names[0]], coding.group, row, chunk, mask)
    if coding.super_group:
        value = f"{value} * {_grouped(layout, arrays[names[1]], coding.super_group, row, chunk, mask)}"
    return w.let(value, "s")


def _grouped(layout: Chunks, array: str, group: int, row: str, chunk: str, mask: str) -> str:
    shared = group // layout.chunk
    index = f"({chunk} // {shared})" if shared > 1 else chunk
    start = f"({row}{wide(layout.rows, layout.columns)} * {layout.columns // group})"
    loaded = f"{array} + {start}[:, None] + {index}[None, :]"
    return f"tl.load({loaded}{f', mask={mask}, other=0' if mask else ''}).to(tl.float32)"


def field(codes: Codes, i: int) -> str:
    """Field `i` of all words as floats 1 + code / steps."""
    layout, bits = codes.layout, codes.coding.bits
    width, high = layout.width, codes.coding.high_bits
    text = f"{_moved(codes.words, i * width, MANTISSA - bits, width)} | {ONE}"
    if high:
        text += f" | {_moved(codes.high, i * layout.words * high, MANTISSA - high, high)}"
    return f"({text}).to(tl.float32, bitcast=True)"


def _moved(words: str, start: int, target: int, width: int) -> str:
    """The `width` bits from `start` of words, cut out and moved so that they begin at bit `target`."""
    left = target - start
    moved = f"({words} << {left})" if left > 0 else f"({words} >> {-left})" if left else words
    return f"({moved} & {((1 << width) - 1) << target:#x})"
