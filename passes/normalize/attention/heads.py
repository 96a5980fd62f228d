"""KV heads that were repeated to the number of query heads, found again before the repetition."""

from __future__ import annotations

from irx.ir.dims import Dim
from irx.ir.graph import Builder, Node, Value


def unrepeated(value: Value, b: Builder) -> Value | None:
    """The tensor [B, G, T, D] that `value` [B, H, T, D] repeats, each head H / G times in a row; None if it does not.

    Recognised are an expanded axis behind the heads that a reshape joins to them, and one head expanded to all.
    """
    node = value.producer
    if node is None or len(value.shape) != 4:
        return None
    if node.op.name == "expand":
        return _single(node, value)
    return _joined(node, value, b) if node.op.name == "reshape" else None


def _single(node: Node, value: Value) -> Value | None:
    (x,) = node.inputs
    assert x is not None
    batch, _, length, size = value.shape
    return x if x.shape == (batch, 1, length, size) else None


def _joined(node: Node, value: Value, b: Builder) -> Value | None:
    batch, heads, length, size = value.shape
    wide = node.inputs[0]
    expand = wide.producer if wide is not None else None
    if wide is None or expand is None or expand.op.name != "expand" or len(wide.shape) != 5:
        return None
    column = expand.inputs[0]
    assert column is not None
    groups, copies = wide.shape[1:3]
    if wide.shape != (batch, groups, copies, length, size) or groups * copies != heads:
        return None
    return _narrow(column, (batch, groups, length, size), b)


def _narrow(column: Value, shape: tuple[Dim, ...], b: Builder) -> Value | None:
    """[B, G, 1, T, D] as [B, G, T, D]."""
    if (*column.shape[:2], *column.shape[3:]) != shape or column.shape[2] != 1:
        return None
    inner = column.producer
    source = inner.inputs[0] if inner is not None and inner.op.name == "reshape" else None
    return source if source is not None and source.shape == shape else b("reshape", column, shape=shape)
