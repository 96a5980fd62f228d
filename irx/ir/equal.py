"""Compares programs and graphs by structure: value names, locations and the order of independent nodes do not count.

Two graphs are the same when each result of one is computed as the result of that name in the other: same op, same
attributes (left out or given as the default is one thing), same operands in the same order, same types. Weights are
compared by name, derived ones by how they are made, bodies of fusions by what they compute. Nodes that no result needs
must be as many and of the same ops.
"""

from __future__ import annotations

from collections import Counter
from itertools import zip_longest

from irx.ir.graph import Graph, Literal, Node, Value, Weight
from irx.ir.printer import present_operands, print_node, print_program, stated_attributes
from irx.ir.program import Program
from irx.ir.regions import body_of
from irx.ir.signatures import inputs_of
from irx.ir.spelling import format_operand, format_value
from irx.ir.weights import Weights


def same_graph(a: Graph, b: Graph) -> bool:
    """True when the graphs compute the same."""
    return graph_difference(a, b) is None


def same_program(a: Program, b: Program) -> bool:
    """True when the programs compute the same, whatever their names, locations and metadata."""
    return difference(a, b) is None


def difference(a: Program, b: Program) -> str | None:
    """The first difference between two programs, readable; None when they are the same."""
    for name in dict.fromkeys([*a.graphs, *b.graphs]):
        if name not in a.graphs or name not in b.graphs:
            return f"graph @{name} is only in the {'first' if name in a.graphs else 'second'}"
        found = graph_difference(a.graphs[name], b.graphs[name], a.weights, b.weights)
        if found:
            return f"@{name}: {found}"
    return None


def exact_difference(a: Program, b: Program) -> str | None:
    """The first line in which the texts of two programs differ: names, order, locations and metadata count."""
    lines = zip_longest(print_program(a).splitlines(), print_program(b).splitlines(), fillvalue="(end)")
    for number, (first, second) in enumerate(lines, 1):
        if first != second:
            return f"line {number}: {first.strip()}\n      against: {second.strip()}"
    return None


def graph_difference(
    a: Graph, b: Graph, weights_a: Weights | None = None, weights_b: Weights | None = None
) -> str | None:
    """The first difference between two graphs in the order of computation; None when they are the same.

    With the weight stores of their programs, derived weights are compared by how they are made; without, by name.
    """
    return _Comparison(a, b, weights_a, weights_b).difference()


class _Comparison:
    def __init__(self, a: Graph, b: Graph, weights_a: Weights | None, weights_b: Weights | None) -> None:
        self.a, self.b = a, b
        self.stores = weights_a, weights_b
        self.matched: dict[Value, Value] = dict(zip(a.inputs, b.inputs, strict=False))
        self.visited: set[Node] = set()
        self.bodies: dict[tuple[Graph, Graph], str | None] = {}
        self.taken: set[Node] = set()  # nodes of the second graph that one of the first stands for

    def difference(self) -> str | None:
        if list(inputs_of(self.a).items()) != list(inputs_of(self.b).items()):
            return f"inputs differ: {_inputs(self.a)}\n      against: {_inputs(self.b)}"
        if self.a.output_names != self.b.output_names:
            return f"results differ: {', '.join(self.a.output_names)}\n      against: {', '.join(self.b.output_names)}"
        return self.computations()

    def computations(self) -> str | None:
        """As `difference`, for inputs and results that correspond by their places."""
        for first, second in zip(self.a.outputs, self.b.outputs, strict=True):
            found = self._walk(first, second)
            if found:
                return found
        return self._unneeded()

    def _walk(self, a: Value, b: Value) -> str | None:
        """Compare everything that two values are computed from, operands before what reads them."""
        stack: list[tuple[Value | None, Value | None, bool]] = [(a, b, False)]
        while stack:
            first, second, ready = stack.pop()
            if first is None or second is None or first.producer is None or second.producer is None:
                found = self._leaves(first, second)
            elif ready:
                found = self._nodes(first.producer, second.producer)
            elif first in self.matched:
                found = None if self.matched[first] is second else _values(first, second)
            else:
                found = _operations(first, second)
                stack.append((first, second, True))
                pairs = zip(present_operands(first.producer), present_operands(second.producer), strict=False)
                stack += [(x, y, False) for x, y in reversed(list(pairs))]
            if found:
                return found
        return None

    def _nodes(self, a: Node, b: Node) -> str | None:
        if a in self.visited:
            return None
        mine, other = present_operands(a), present_operands(b)
        if len(mine) != len(other):
            return _pair(f"{len(mine)} operands against {len(other)}", a, b)
        if _attributes(a) != _attributes(b):
            return _pair("attributes differ", a, b)
        inside = self._bodies(body_of(a), body_of(b))
        if inside is not None:
            return f"{_pair('bodies differ', a, b)}\n      {inside}"
        if [value.type for value in a.outputs] != [value.type for value in b.outputs]:
            return _pair("types differ", a, b)
        if b in self.taken:
            return _pair("two nodes of the first are one in the second", a, b)
        self.visited.add(a)
        self.taken.add(b)
        self.matched.update(zip(a.outputs, b.outputs, strict=True))
        return None

    def _bodies(self, a: Graph | None, b: Graph | None) -> str | None:
        """Compare what two fusions do, whatever names their inputs and results have there."""
        if a is b or a is None or b is None:
            return None
        if (a, b) not in self.bodies:
            self.bodies[a, b] = _Comparison(a, b, None, None).computations()
        return self.bodies[a, b]

    def _leaves(self, a: Value | None, b: Value | None) -> str | None:
        """Compare where at least one side is no result of a node."""
        if isinstance(a, Weight) and isinstance(b, Weight):
            return self._weights(a, b)
        if isinstance(a, Literal) and isinstance(b, Literal):
            return None if format_value(a.value) == format_value(b.value) else _values(a, b)
        same = a is b if a is None or b is None else self.matched.get(a) is b
        return None if same else _values(a, b)

    def _weights(self, a: Weight, b: Weight) -> str | None:
        if a.type != b.type:
            return f"weights differ: {a!r} against {b!r}"
        made, other = (store.entry(w).derivation if store else None for store, w in zip(self.stores, (a, b)))
        if made is None or other is None:
            return None if a.name == b.name and made is other else f"weights differ: {a!r} against {b!r}"
        if made.op is not other.op or len(made.inputs) != len(other.inputs):
            return f"weights are made differently: {a!r} against {b!r}"
        if stated_attributes(made.op, made.attrs) != stated_attributes(other.op, other.attrs):
            return f"weights are made with other attributes: {a!r} against {b!r}"
        found = (self._leaves(x, y) for x, y in zip(made.inputs, other.inputs, strict=True))
        return next(filter(None, found), None)

    def _unneeded(self) -> str | None:
        """Nodes that no result needs: compared by op alone."""
        mine = Counter(node.op.qualified() for node in self.a.nodes if node not in self.visited)
        other = Counter(node.op.qualified() for node in self.b.nodes if node not in self.taken)
        if mine == other:
            return None
        return (
            f"nodes without readers differ: {dict(mine - other)} only in the first, {dict(other - mine)} in the second"
        )


def _attributes(node: Node) -> dict[str, str]:
    """The attributes as they are spelled; a body's name does not count."""
    return {k: text for k, text in stated_attributes(node.op, node.attrs).items() if k != "body"}


def _operations(a: Value, b: Value) -> str | None:
    """Different ops, or different results of one op."""
    first, second = a.producer, b.producer
    if first is None or second is None:
        return _values(a, b)
    if first.op is not second.op:
        return _pair("operations differ", first, second)
    if [v is a for v in first.outputs] != [v is b for v in second.outputs]:
        return _pair(f"another result is used: %{a.name} against %{b.name}", first, second)
    return None


def _values(a: Value | None, b: Value | None) -> str:
    return f"operands differ: {_shown(a)}\n      against: {_shown(b)}"


def _shown(value: Value | None) -> str:
    if value is None or value.producer is None:
        return format_operand(value)
    return print_node(value.producer)


def _pair(what: str, a: Node, b: Node) -> str:
    return f"{what}: {print_node(a)}  // {a.loc}\n      against: {print_node(b)}  // {b.loc}"


def _inputs(graph: Graph) -> str:
    return ", ".join(map(repr, graph.inputs))
