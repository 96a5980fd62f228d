"""How much work a node or a graph is: operations and bytes, as expressions over the named sizes.

Bytes count every operand read and every result written once, as if nothing were fused, except where an op knows that it
touches less (views move nothing, lookups read only what they return). A cache without a fixed capacity is charged for
`T` tokens. Weights that depend on nothing else, and what is computed from them alone, count like any other operand.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from irx.ir.dims import Bindings, Dim, evaluate
from irx.ir.graph import Graph, Node


@dataclass(frozen=True)
class Cost:
    """Floating-point operations (a multiply-add is two) and bytes moved."""

    flops: Dim = 0
    bytes: Dim = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def at(self, bindings: Bindings) -> tuple[int, int]:
        """(flops, bytes) where every named size has a value. Raises KeyError for a size without one."""
        return evaluate(self.flops, bindings), evaluate(self.bytes, bindings)


def node_cost(node: Node) -> Cost:
    """The cost of one node."""
    operands = [v.type if v is not None else None for v in node.inputs]
    results = [v.type for v in node.outputs]
    return Cost(node.op.flops(*operands, **node.attrs), node.op.bytes(operands, results))


def graph_cost(graph: Graph) -> Cost:
    """The sum over all nodes of a graph."""
    return total(node_cost(node) for node in graph.nodes)


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of costs."""
    return sum(costs, Cost())
