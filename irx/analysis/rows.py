"""Evaluates only some rows of a value-free value: a mask of a million elements is known by a few of its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from irx.analysis.axes import operand_axes, resized
from irx.analysis.structure import between
from irx.analysis.values import Prober
from irx.ir.graph import Graph, Literal, Node, Value, Weight
from irx.ir.opdef import Array
from irx.ir.types import TensorType


def rows_of(prober: Prober, value: Value, axis: int, rows: Sequence[int], sizes: Mapping[str, int]) -> Array:
    """`value` at the named sizes, restricted along `axis` to `rows`, without computing the others where possible."""
    part = Graph("rows")
    builder = _Rows(part, part.add_input("rows", TensorType((len(rows),), "i64")), len(rows))
    part.set_outputs({"y": builder.restricted(value, axis)})
    inputs = {v.name: prober.weights.array(w) for w, v in builder.weights.items()}
    return prober.evaluate(part, {**inputs, "rows": np.asarray(rows, np.int64)}, sizes)[0]


@dataclass
class _Rows:
    """Copies a value's computation with the selection of rows moved as far up as the ops allow."""

    part: Graph
    rows: Value
    count: int
    weights: dict[Weight, Value] = field(default_factory=dict)
    _whole: dict[Value, Value] = field(default_factory=dict)
    _restricted: dict[tuple[Value, int], Value] = field(default_factory=dict)

    def whole(self, value: Value) -> Value:
        """A copy of `value` with all its rows."""
        for node in between([value], self._whole):
            for operand in node.inputs:
                self._admit(operand)
            made = self.part.add_copy(node, self._whole)
            self._whole.update(zip(node.outputs, made.outputs, strict=True))
        self._admit(value)
        return self._whole.get(value, value)

    def restricted(self, value: Value, axis: int) -> Value:
        """The chosen rows of `value`."""
        found = self._restricted.get((value, axis))
        if found is None:
            found = self._restricted[value, axis] = self._restrict(value, axis)
        return found

    def _restrict(self, value: Value, axis: int) -> Value:
        node = value.producer
        axes = operand_axes(node, axis) if node is not None and len(node.outputs) == 1 else None
        if node is None or axes is None:
            return self.part.add("take", (self.whole(value), self.rows), {"axis": axis}).output
        operands = [_each(v, a, self.whole, self.restricted) for v, a in zip(node.inputs, axes, strict=True)]
        return self._again(node, operands, axis)

    def _again(self, node: Node, operands: Sequence[Value | None], axis: int) -> Value:
        return self.part.add(node.op, operands, resized(node, axis, self.count), loc=node.loc).output

    def _admit(self, value: Value | None) -> None:
        """Weights become inputs, as everywhere where a part of a graph is evaluated alone."""
        if isinstance(value, Weight) and value not in self._whole:
            self.weights[value] = self._whole[value] = self.part.add_input(f"w{len(self.weights)}", value.type)


def _each(
    value: Value | None, axis: int | None, whole: Callable[[Value], Value], some: Callable[[Value, int], Value]
) -> Value | None:
    if value is None or isinstance(value, Literal):
        return value
    return whole(value) if axis is None else some(value, axis)
