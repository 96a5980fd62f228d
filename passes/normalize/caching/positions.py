"""Values of `forward` that depend on positions, computed from the graph's `pos` input instead.

Before, in `forward`:

    %i = irx.arange() {stop=S} : i64[S]
    %p = irx.reshape(%i) {shape=[1, S]} : i64[1, S]
    %e = irx.embedding(%p, $wpe) : f32[1, S, 64]
    %y = irx.add(%x, %e) : f32[B, S, 64]

After, in `prefill`:

    %p = irx.maximum(%pos, 0) : i64[B, S]
    %e = irx.embedding(%p, $wpe) : f32[B, S, 64]
    %y = irx.add(%x, %e) : f32[B, S, 64]

Only the values where the value-free part of the graph ends are replaced, each for the consumer that reads it: what
computes them goes away. Positions of padding are -1; they read row 0 of tables, and nobody reads what becomes of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field

from irx.analysis.structure import between
from irx.ir.dims import Dim
from irx.ir.graph import Builder, Graph, Node, Value, Weight
from irx.ir.types import numpy_dtype
from irx.ir.weights import Weights
from irx.passes.normalize.caching.frontier import Constant, Counting, Frontier, Lookup, Rows
from irx.passes.normalize.caching.refusal import NotCacheable


@dataclass
class Positions:
    """Copies value-free values into `target`, which has the input `pos` i64[B, S]."""

    target: Graph
    pos: Value
    frontier: Frontier
    weights: Weights
    stored: dict[Value, tuple[Rows, Weight]] = field(default_factory=dict)  # values that are new constants now
    _copies: dict[Value, Value] = field(default_factory=dict)
    _made: dict[Hashable, Value] = field(default_factory=dict)
    _tables: dict[Hashable, Weight] = field(default_factory=dict)

    def operand(self, value: Value, consumer: Node) -> Value:
        """What stands for the value-free `value` as an operand of the copy of `consumer`. Raises NotCacheable."""
        kind = self.frontier.kind(value)
        if isinstance(kind, Constant):
            return self.copy(value)
        rank = _rank_for(value, consumer, self.frontier.batch)
        return self._once((value, rank), consumer, lambda b: self._arranged(b, value, kind, rank))

    def copy(self, value: Value) -> Value:
        """A copy of `value` and all it is computed from."""
        for node in between([value], self._copies):
            made = self.target.add_copy(node, self._copies)
            self._copies.update(zip(node.outputs, made.outputs, strict=True))
        return self._copies.get(value, value)

    def store(self, graph: Graph, mapping: Mapping[Value, Value]) -> None:
        """Replace the values that are new constants by rows of these, in a copy of the source."""
        for value, (kind, table) in self.stored.items():
            old = mapping[value]
            graph.replace(old, _stored_rows(graph, old, kind, table, self.frontier))

    def _once(self, key: Hashable, consumer: Node, make: Callable[[Builder], Value]) -> Value:
        if key not in self._made:
            self._made[key] = make(Builder(self.target, loc=consumer.loc.touched("insert-cache")))
        return self._made[key]

    def _arranged(self, b: Builder, value: Value, kind: Counting | Lookup | Rows, rank: int) -> Value:
        """The rows at `pos`, their axes aligned with the last of `rank` axes as the value's are, the batch in front."""
        shift = rank - len(value.shape)
        batch = self.frontier.batch
        others = (
            []
            if isinstance(kind, Counting)
            else [axis for axis, dim in enumerate(value.shape) if axis != kind.axis and dim not in (1, batch)]
        )
        if shift + kind.axis == 0 or any(shift + axis == 0 for axis in others):
            raise NotCacheable(f"%{value.name}: {value.type} has no axis that could be the batch", value.producer)
        rows = self._rows(b, value, kind)
        rows = _reshaped(b, rows, [*self.pos.shape, *(value.shape[axis] for axis in others)])
        places = [0, shift + kind.axis, *(shift + axis for axis in others)]
        order = sorted(range(len(places)), key=places.__getitem__)
        moved = rows if order == list(range(len(order))) else b("permute", rows, order=tuple(order))
        shape: list[Dim] = [1] * rank
        for place, dim in zip(sorted(places), moved.shape, strict=True):
            shape[place] = dim
        return _reshaped(b, moved, shape)

    def _rows(self, b: Builder, value: Value, kind: Counting | Lookup | Rows) -> Value:
        """The value's rows at `pos`: [B, S, ...]."""
        if isinstance(kind, Rows):
            table, index = self._table(value, kind), self._index(b, 0)
        elif isinstance(kind, Lookup):
            table, index = self._flat(b, self.copy(kind.table)), self._index(b, kind.start)
        else:
            index = self._index(b, kind.start)
            return index if index.dtype == value.dtype else b("cast", index, dtype=value.dtype)
        return b("embedding", index, table)

    def _flat(self, b: Builder, table: Value) -> Value:
        """A table of the model as [rows, channels]."""
        rows, *channels = [dim for dim in table.shape if dim != 1] or [1]
        return _reshaped(b, table, [rows, *(channels or [1])])

    def _table(self, value: Value, kind: Rows) -> Value:
        """The rows as a constant of the program; layers that have the same ones share it."""
        array = kind.rows[: self.frontier.longest].astype(numpy_dtype(value.dtype))
        array = array.reshape(len(array), -1)
        key = (value.dtype, array.shape, hashlib.sha256(array.tobytes()).digest())
        if key not in self._tables:
            self._tables[key] = self.weights.add_array(f"positions.{value.name}", array)
        self.stored[value] = kind, self._tables[key]
        return self._tables[key]

    def _index(self, b: Builder, start: int) -> Value:
        clamped = self._made.get("clamped")
        if clamped is None:
            clamped = self._made["clamped"] = b("maximum", self.pos, 0)
        return b("add", clamped, start) if start else clamped


def _stored_rows(graph: Graph, value: Value, kind: Rows, table: Weight, frontier: Frontier) -> Value:
    b = Builder(graph, before=value.producer)
    rows = b("embedding", b("arange", stop=frontier.length), table)
    shape: list[Dim] = [1 if dim == frontier.batch else dim for dim in value.shape]
    rest = [dim for axis, dim in enumerate(shape) if axis != kind.axis]
    rows = _reshaped(b, rows, [frontier.length, *rest])
    order = [*range(1, kind.axis + 1), 0, *range(kind.axis + 1, len(shape))]
    rows = rows if kind.axis == 0 else b("permute", rows, order=tuple(order))
    return rows if rows.shape == value.shape else b("expand", rows, shape=value.shape)


def _reshaped(b: Builder, value: Value, shape: list[Dim]) -> Value:
    return value if tuple(shape) == value.shape else b("reshape", value, shape=tuple(shape))


def _rank_for(value: Value, consumer: Node, batch: Dim) -> int:
    """How many axes the value's stand-in has: those of the consumer's result where operands broadcast."""
    if not consumer.op.elementwise:
        return len(value.shape)
    if consumer.output.shape[0] != batch:
        what = f"%{consumer.output.name}: {consumer.output.type}"
        raise NotCacheable(f"{what} depends on positions, and its first axis is not the batch", consumer)
    return len(consumer.output.shape)
