"""What a pattern found: the values it captured, the nodes it covers, and how far a failed attempt got."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from irx.ir.dims import SymDim
from irx.ir.graph import Graph, Literal, Node, Value, Weight


@dataclass
class Trace:
    """The first condition that failed at the deepest point that any attempt at one root reached.

    Failures count once a key node (the op that gives a pattern away, as `rsqrt` a norm) was found: before that a place
    is something else, not a near miss.
    """

    reason: str = ""
    depth: int = 0

    def fail(self, found: Match, reason: str) -> None:
        """Note why the attempt `found` ended here."""
        if found.keyed and len(found.nodes) > self.depth:
            self.reason, self.depth = reason, len(found.nodes)

    def refuse(self, reason: str) -> None:
        """Note why a complete match was not rewritten, which is deeper than any failure; the first one stays."""
        if self.depth < sys.maxsize:
            self.reason, self.depth = reason, sys.maxsize


@dataclass(frozen=True)
class Match:
    """One way in which a pattern fits, so far. `leaves` are the values at which the pattern ends."""

    graph: Graph
    trace: Trace = field(default_factory=Trace, compare=False)
    values: Mapping[str, Value] = field(default_factory=dict)
    nodes: tuple[Node, ...] = ()
    leaves: tuple[Value, ...] = ()
    shared: frozenset[Node] = frozenset()
    keyed: bool = False

    @property
    def root(self) -> Node:
        """The node the pattern starts from."""
        return self.nodes[0]

    def __getitem__(self, name: str) -> Value:
        return self.values[name]

    def get(self, name: str) -> Value | None:
        """The captured value, None where the pattern took a way without it."""
        return self.values.get(name)

    def node(self, name: str) -> Node:
        """The node that computes a captured value."""
        node = self.values[name].producer
        assert node is not None, f"{name!r} captures a value that no node computes"
        return node

    def number(self, name: str) -> float:
        """The captured literal as a float."""
        number = scalar(self.values[name])
        assert number is not None, f"{name!r} captures a value that is not a number"
        return float(number)

    def bind(self, name: str | None, value: Value) -> Match | None:
        """This match with one more capture; None when the name already stands for another value."""
        if name is None:
            return self
        known = self.values.get(name)
        if known is None:
            return replace(self, values={**self.values, name: value})
        return self if same_value(known, value) else None

    def through(self, node: Node, *, key: bool = False, shared: bool = False) -> Match:
        """This match with one more node covered."""
        return replace(
            self,
            nodes=(*self.nodes, node) if node not in self.nodes else self.nodes,
            keyed=self.keyed or key,
            shared=self.shared | {node} if shared else self.shared,
        )

    def ending(self, value: Value) -> Match:
        """This match with one more leaf."""
        return self if value in self.leaves else replace(self, leaves=(*self.leaves, value))

    def outside_user(self) -> Node | None:
        """A covered node, not the root and not marked as shared, that something outside the match reads."""
        inside = set(self.nodes)
        for node in self.nodes[1:]:
            read = any(u not in inside for value in node.outputs for u in self.graph.users(value))
            if node not in self.shared and (read or any(self.graph.is_output(value) for value in node.outputs)):
                return node
        return None


def same_value(a: Value, b: Value) -> bool:
    """True for one value, or for literals of equal value."""
    if isinstance(a, Literal) and isinstance(b, Literal):
        return type(a.value) is type(b.value) and a.value == b.value
    return a is b


def scalar(value: Value | None) -> bool | int | float | None:
    """The number a value stands for: a literal that is not a size, or a `full` of rank 0."""
    if isinstance(value, Literal):
        return None if isinstance(value.value, SymDim) else value.value
    node = value.producer if value is not None else None
    if node is None or node.op.name != "full" or node.attr("shape") != ():
        return None
    number = node.attr("value")
    return number if isinstance(number, bool | int | float) else None


def describe(value: Value | None) -> str:
    """A value as an error message names it: `%x (mul)`, `$w`, `2.0`, `nothing`."""
    if value is None:
        return "nothing"
    if isinstance(value, Literal):
        return str(value.value)
    if isinstance(value, Weight):
        return f"${value.name}"
    return f"%{value.name} ({value.producer.op.name if value.producer is not None else 'an input'})"
