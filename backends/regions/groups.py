"""From a region to kernels: which values are stored, in which order, and which of them one kernel computes.

Values with equally many elements are computed by one kernel; how, is the backend's part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from irx.backends.regions.lowered import Binding, Call, Refusal, Temporary
from irx.ir.dims import product
from irx.ir.graph import Graph, Literal, Node, Value
from irx.ir.types import is_float

MOST_TRIES = 32
LINEWISE = ("cumsum", "topk")
"""Ops that go along an axis in order: a kernel of their own each."""


class Materialize(Exception):
    """Raised with a node whose results must be computed by a kernel of their own first."""

    def __init__(self, node: Node) -> None:
        super().__init__(node.op.name)
        self.node = node


@dataclass(frozen=True)
class Buffer:
    """Where a value lies: its binding, and the dtype of its elements in memory."""

    binding: Binding
    dtype: str


Buffers: TypeAlias = dict[Value, Buffer]


@dataclass
class Region:
    """A region that is being lowered: its simple nodes, and the buffers of what lies in memory.

    `write(values, buffers)` gives the call that computes a group of values; it raises Materialize for a node whose
    results have to be in memory first.
    """

    body: Graph
    buffers: Buffers
    stored: Buffers
    write: Callable[[Sequence[Value], Buffers], Call]

    def lower(self) -> tuple[Call, ...]:
        """All calls, in order. Raises Refusal."""
        for _ in range(MOST_TRIES):
            try:
                return self._calls()
            except Materialize as need:
                self._materialize(need.node)
        raise Refusal("too many intermediate results")

    def _calls(self) -> tuple[Call, ...]:
        buffers, calls = dict(self.buffers), []
        for group in self._groups():
            if product(group[0].shape) != 0:
                calls.append(self.write(group, buffers))
            buffers.update({value: self.stored[value] for value in group})
        return tuple(calls)

    def _materialize(self, node: Node) -> None:
        for value in node.outputs:
            if value in self.stored:
                raise Refusal(f"{node.op.name} of {value.type} needs itself")
            dtype = "f32" if is_float(value.dtype) else "bool" if value.dtype == "bool" else "i64"
            count = product(value.shape) * {"f32": 4, "i64": 8, "bool": 1}[dtype]
            self.stored[value] = Buffer(Temporary(f"t{len(self.stored)}", count), dtype)

    def _groups(self) -> list[list[Value]]:
        """Stored values, each group after what it reads."""
        ordered = [v for node in self.body.nodes for v in node.outputs if v in self.stored]
        groups: list[list[Value]] = []
        for value in ordered:
            position = self._group_of(value, groups)
            if position is None:
                groups.append([value])
            else:
                groups[position].append(value)
        return groups

    def _group_of(self, value: Value, groups: list[list[Value]]) -> int | None:
        """The earliest group of as many elements that stands after all that the value reads."""
        assert value.producer is not None
        if value.producer.op.name in LINEWISE:
            same = [i for i, g in enumerate(groups) if g[0].producer is value.producer]
            return same[0] if same else None
        needed = self._stored_sources(value)
        after = max((i for i, group in enumerate(groups) if needed & set(group)), default=-1)
        for i, group in enumerate(groups):
            producer = group[0].producer
            scan = producer is not None and producer.op.name in LINEWISE
            inside = i == after and not scan and not any(self._is_move(v) for v in group)
            if (i > after or inside) and not scan and product(group[0].shape) == product(value.shape):
                return i
        return None

    def _is_move(self, value: Value) -> bool:
        return value.producer is not None and not value.producer.op.elementwise

    def _stored_sources(self, value: Value) -> set[Value]:
        """The stored values that this one is computed from."""
        found: set[Value] = set()
        waiting = [value]
        seen: set[Value] = set()
        while waiting:
            node = waiting.pop().producer
            for source in node.inputs if node is not None else ():
                if source is None or source in seen or isinstance(source, Literal):
                    continue
                seen.add(source)
                waiting.append(source)
                if source in self.stored:
                    found.add(source)
        return found
