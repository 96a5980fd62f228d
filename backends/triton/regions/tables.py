"""Weights that are looked up: read from the layout that products use, so that a tied table is stored once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from irx.backends.layouts.coding import Coding
from irx.backends.regions.groups import Buffer
from irx.backends.regions.lowered import PackedPart, Refusal
from irx.backends.triton.regions.places import Index, Place
from irx.backends.triton.templates.linear_layout import Chunks
from irx.ir.graph import Graph, Node, Value

if TYPE_CHECKING:
    from irx.backends.triton.regions.code import Code

SMALL = 1 << 20  # elements: a float table below may be stored twice
FLOATS = ("f32", "bf16", "f16")
LOW = 4  # bits of a code in the first plane, where it has two


@dataclass(frozen=True)
class Table:
    """A weight (an input of the body) in rows."""

    layout: Chunks
    weight: Value


def tables(body: Graph, outer: Mapping[Value, Value]) -> dict[Value, Table]:
    """The values of `body` that are read from rows: unpacked weights, and large ones that are looked up."""
    found: dict[Value, Table] = {}
    for node in body.nodes:
        value = node.output if node.op.name == "dequantize" else _looked_up(node)
        if value is not None and (weight := _source(value)) in outer:
            found[value] = Table(_layout(weight), outer[weight])
    return found


def read(code: Code, table: Table, place: Place) -> str:
    """Elements of a table as float32."""
    row, column = code.places.split(place)
    layout = table.layout
    if layout.coding is None:
        return _load(code, table, "data", row.times(str(layout.depth)).plus(column), place)
    return code.let(_decoded(code, table, layout.coding, row, column, place))


def _decoded(code: Code, table: Table, coding: Coding, row: Index, column: Index, place: Place) -> str:
    """scale * (code - zero) + minimum, as `irx.backends.layouts.coding` says it."""
    layout = table.layout
    chunk, inside = column.divided(str(layout.chunk))
    number, word = inside.divided(str(layout.words))
    at = row.times(str(layout.columns // layout.fields)).plus(chunk.times(str(layout.words))).plus(word)
    words = _load(code, table, "codes", at, place)
    codes = f"(({words} >> ({number.grouped} * {layout.width})) & {(1 << layout.width) - 1})"
    if bits := coding.high_bits:
        part, rest = column.divided(str(coding.high_in_word))
        high = _load(code, table, "high", row.times(str(layout.columns // coding.high_in_word)).plus(part), place)
        codes += f" + ((({high} >> ({rest.grouped} * {bits})) & {(1 << bits) - 1}) << {LOW})"
    level = code.let(f"({codes} - {coding.zero}).to(tl.float32)")
    text = f"{_scale(code, table, coding, 'scales', row, column, place)} * {level}"
    if not coding.has_minimum:
        return text
    sign = "-" if coding.super_group else "+"
    return f"{text} {sign} {_scale(code, table, coding, 'minima', row, column, place)}"


def _scale(code: Code, table: Table, coding: Coding, part: str, row: Index, column: Index, place: Place) -> str:
    scale = _grouped(code, table, part, coding.group, row, column, place)
    if not coding.super_group:
        return scale
    return f"({scale} * {_grouped(code, table, f'super_{part}', coding.super_group, row, column, place)})"


def _grouped(code: Code, table: Table, part: str, group: int, row: Index, column: Index, place: Place) -> str:
    at = row.times(str(table.layout.columns // group)).plus(column.divided(str(group))[0])
    return f"{_load(code, table, part, at, place)}.to(tl.float32)"


def _load(code: Code, table: Table, part: str, index: Index, place: Place) -> str:
    """Elements of an array of the layout: words as int32, numbers as float32."""
    bound = Buffer(PackedPart(table.layout, (table.weight,), part), table.layout.parts[part].dtype)
    pointer = code.pointer(bound)
    mask = f", mask={place.mask}, other=0" if place.mask else ""
    words = part in ("codes", "high")
    return code.let(f"tl.load({pointer} + {index.grouped}{mask}){'' if words else '.to(tl.float32)'}", "x")


def _looked_up(node: Node) -> Value | None:
    table = node.inputs[1] if node.op.name == "embedding" else None
    weight = None if table is None else _source(table)
    if weight is None or weight.dtype not in FLOATS:
        return None
    rows, columns = weight.shape
    small = isinstance(rows, int) and isinstance(columns, int) and rows * columns < SMALL
    return None if small else table


def _source(value: Value) -> Value:
    """The weight behind a widening or unpacking."""
    node = value.producer
    if node is None or node.op.name not in ("dequantize", "cast") or node.inputs[0] is None:
        return value
    return node.inputs[0]


def _layout(weight: Value) -> Chunks:
    if len(weight.shape) != 2:
        raise Refusal(f"a packed weight {weight.type}")
    rows, columns = weight.shape
    assert isinstance(rows, int) and isinstance(columns, int), f"a weight has fixed sizes, not {weight.type}"
    return Chunks(weight.dtype, rows, columns)
