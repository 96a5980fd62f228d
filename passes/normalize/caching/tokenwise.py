"""Shows that a graph with a cache treats tokens independently, but for its attention sites.

From the logits and from what is appended to caches, the token axis is followed up to the inputs. Where every node on
the way is known to keep rows apart, computing tokens in several calls gives what computing them in one call gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from irx.analysis.axes import operand_axes, preserved_axis
from irx.analysis.values import dependent
from irx.ir.dims import Dim
from irx.ir.graph import Graph, Literal, Node, Value
from irx.ir.types import KVType, TensorType

_Axis: TypeAlias = tuple[int, bool]  # the index of the axis, and whether batch and tokens are one axis there


def mixing_nodes(graph: Graph, batch: Dim, length: Dim) -> list[tuple[Node, str]]:
    """Nodes of which it is not known that they keep tokens apart, each with a reason; empty where all do."""
    return list(_Walk(graph, batch, length).run())


class _Walk:
    def __init__(self, graph: Graph, batch: Dim, length: Dim) -> None:
        self.graph = graph
        self.batch, self.length = batch, length
        tokens = [v for v in graph.inputs if isinstance(v.type, TensorType) and length in v.shape]
        self.dependent = dependent(graph, tokens)
        self.axes: dict[Value, _Axis] = {}
        self.pending: list[Value] = []

    def run(self) -> Iterator[tuple[Node, str]]:
        self._start()
        while self.pending:
            value = self.pending.pop()
            if value.producer is None:
                continue
            reason = self._up(value.producer, *self.axes[value])
            if reason:
                yield value.producer, reason

    def _start(self) -> None:
        self._visit(self.graph.outputs[0], (1, False))
        for node in self.graph.nodes:
            if node.op.name == "kv_append":
                for value, axis in zip(node.inputs[1:], (2, 2, 1), strict=True):
                    self._visit(value, (axis, False))

    def _visit(self, value: Value | None, axis: _Axis) -> bool:
        """Follow `value`; False where it was met with another axis before."""
        if value is None or value not in self.dependent:
            return True
        if value not in self.axes:
            self.axes[value] = axis
            self.pending.append(value)
        return self.axes[value] == axis

    def _up(self, node: Node, axis: int, flat: bool) -> str:
        """Follow the operands of a node whose result has the tokens along `axis`; else why that cannot be done."""
        if node.op.name == "reshape":
            return self._reshape(node, axis, flat)
        axes = operand_axes(node, axis)
        if axes is None:
            return f"{node.op.name} is not known to keep tokens apart"
        for operand, place in zip(node.inputs, axes, strict=True):
            if operand is None or isinstance(operand, Literal):
                continue
            if place is None and operand in self.dependent and not isinstance(operand.type, KVType):
                return f"{node.op.name} reads all tokens of %{operand.name} for every token"
            if place is not None and not self._visit(operand, (place, flat)):
                return f"%{operand.name} is read along two axes"
        return ""

    def _reshape(self, node: Node, axis: int, flat: bool) -> str:
        (x,) = node.inputs
        assert x is not None
        found = _reshaped(x.shape, node.output.shape, axis, flat, self.batch, self.length)
        if found is None:
            return f"a reshape from {x.type} to {node.output.type} mixes the tokens with something else"
        return "" if self._visit(x, found) else f"%{x.name} is read along two axes"


def _reshaped(
    before: tuple[Dim, ...], after: tuple[Dim, ...], axis: int, flat: bool, batch: Dim, length: Dim
) -> _Axis | None:
    """Where the token axis of a reshape's result is in its operand."""
    place = preserved_axis(before, after, axis)
    if place is not None:
        return place, flat
    if flat:  # [B, S, ...] became [B*S, ...]
        for at in range(1, len(before)):
            if before[at - 1 : at + 1] == (batch, length) and axis == at - 1 and before[: at - 1] == after[:axis]:
                return at, False
        return None
    front = preserved_axis(before, (*after[: axis - 1], batch * length), axis - 1) if axis else None
    return None if front is None or after[axis - 1] != batch else (front, True)
