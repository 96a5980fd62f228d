"""Elements of weights in the layout that the products of the other path read too, so that each is stored once.

scale * (code - zero) + minimum        as `irx.backends.layouts.coding` says it; floats as they are
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from irx.backends.layouts.coding import Coding
from irx.backends.regions.groups import Buffer
from irx.backends.regions.lowered import PackedPart
from irx.backends.triton.regions.tables import LOW, Table

if TYPE_CHECKING:
    from irx.backends.tvm_cuda.script import Script


def element(script: Script, table: Table, indices: tuple[str, ...]) -> str:
    """The element at (row, column), as float32."""
    row, column = indices
    if table.layout.coding is None:
        return _part(script, table, "data", row, column)
    return _decoded(script, table, table.layout.coding, row, f"({column})")


def _decoded(script: Script, table: Table, coding: Coding, row: str, column: str) -> str:
    layout = table.layout
    inside = f"({column} % {layout.chunk})"
    word = f"{column} // {layout.chunk} * {layout.words} + {inside} % {layout.words}"
    shift = f"{inside} // {layout.words} * {layout.width}"
    code = _field(_part(script, table, "codes", row, word), shift, layout.width)
    if bits := coding.high_bits:
        high = _part(script, table, "high", row, f"{column} // {coding.high_in_word}")
        upper = _field(high, f"{column} % {coding.high_in_word} * {bits}", bits)
        code = f"T.bitwise_or({code}, T.shift_left({upper}, T.int32({LOW})))"
    level = f'T.cast({code} - T.int32({coding.zero}), "float32")'
    text = f"{_scale(script, table, coding, 'scales', row, column)} * {level}"
    if not coding.has_minimum:
        return f"({text})"
    sign = "-" if coding.super_group else "+"
    return f"({text} {sign} {_scale(script, table, coding, 'minima', row, column)})"


def _field(words: str, shift: str, width: int) -> str:
    """The bits of a field of a word."""
    moved = f'T.shift_right(T.cast({words}, "int32"), T.cast({shift}, "int32"))'
    return f"T.bitwise_and({moved}, T.int32({(1 << width) - 1}))"


def _scale(script: Script, table: Table, coding: Coding, part: str, row: str, column: str) -> str:
    scale = f'T.cast({_part(script, table, part, row, f"{column} // {coding.group}")}, "float32")'
    if not coding.super_group:
        return scale
    above = _part(script, table, f"super_{part}", row, f"{column} // {coding.super_group}")
    return f"({scale} * {above})"


def _part(script: Script, table: Table, part: str, row: str, column: str) -> str:
    """An element of an array of the layout: numbers as float32, words and small scales as int64."""
    array = table.layout.parts[part]
    binding = PackedPart(table.layout, (table.weight,), part)
    return script.load(Buffer(binding, array.dtype), array.shape, (row, column))
