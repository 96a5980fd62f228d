"""Weights that are looked up: read from the layout that products use, so that a tied table is stored once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from irx.backends.tvm.layouts.tiles import Tiles, tiles_for
from irx.ir.graph import Graph, Node, Value
from irx.target import Device

SMALL = 1 << 20  # elements: a float table below may be stored twice, and is faster to read as it is
FLOATS = ("f32", "bf16", "f16")


@dataclass(frozen=True)
class Table:
    """A weight (an input of the body) in tiles."""

    layout: Tiles
    weight: Value
    device: Device


def tables(body: Graph, outer: Mapping[Value, Value], device: Device) -> dict[Value, Table]:
    """The values of `body` that are read from tiles: unpacked weights, and large ones that are looked up."""
    found: dict[Value, Table] = {}
    for node in body.nodes:
        value = node.output if node.op.name == "dequantize" else _looked_up(node)
        if value is not None and _source(value) in outer:
            found[value] = Table(_layout(_source(value)), outer[_source(value)], device)
    return found


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
    through = node is not None and node.op.name in ("dequantize", "cast") and node.inputs[0] is not None
    return node.inputs[0] if through else value  # type: ignore[union-attr,return-value]


def _layout(weight: Value) -> Tiles:
    rows, columns = weight.shape
    assert isinstance(rows, int) and isinstance(columns, int), f"a weight has fixed sizes, not {weight.type}"
    return tiles_for(weight.dtype, rows, columns)
