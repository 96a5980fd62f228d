"""Conditions that several passes put on values and nodes: each returns why it does not hold, or None."""

from __future__ import annotations

from irx.analysis.precision import holds
from irx.ir.graph import Node, Value
from irx.ir.types import INTEGERS, is_float


def floats(value: Value) -> str | None:
    """The value has a float dtype."""
    return None if is_float(value.dtype) else f"{value.dtype} is no float dtype"


def integers(value: Value) -> str | None:
    """The value has an integer dtype."""
    return None if value.dtype in INTEGERS else f"{value.dtype} is no integer dtype"


def widened(value: Value) -> str | None:
    """The value is a float cast to a dtype that holds all of its values."""
    source = value.producer.inputs[0] if value.producer is not None else None
    exact = source is not None and is_float(source.dtype) and holds(value.dtype, source.dtype)
    return None if exact else "the cast rounds"


def along_last_axis(node: Node) -> str | None:
    """The node's `axis` is the last."""
    rank = len(node.output.shape)
    return None if node.attr("axis") in (rank - 1, -1) else f"along axis {node.attr('axis')}, not the last"
