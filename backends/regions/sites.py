"""The regions of a graph: what is lowered as one, and where each region stands.

A region's body is shared by all sites that are equal but for the values they read, so rules see each body once. A node
outside a fusion is a region of its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from irx.ir.dims import symbol
from irx.ir.graph import Graph, Literal, Node, Value, Weight
from irx.ir.sizes import dims_of, used_sizes
from irx.ir.types import TensorType


@dataclass(frozen=True, eq=False)
class Site:
    """One region in its graph: `operands` stand for the body's inputs, `results` for its outputs."""

    node: Node
    body: Graph
    operands: tuple[Value, ...]
    results: tuple[Value, ...]

    @property
    def name(self) -> str:
        """What the region does: the op of a lone node, the body's name otherwise."""
        return self.node.op.name if self.node.op.name != "fusion" else self.body.name

    @property
    def place(self) -> str:
        """The module path it comes from."""
        if self.node.loc.module:
            return self.node.loc.module
        return next((node.loc.module for node in self.body.nodes if node.loc.module), "")

    def actual(self, value: Value) -> Value:
        """The graph's value that a body's input or output stands for."""
        for own, actual in ((self.body.inputs, self.operands), (self.body.outputs, self.results)):
            for inner, outer in zip(own, actual, strict=True):
                if inner is value:
                    return outer
        raise KeyError(value.name)


def alone(site: Site) -> tuple[Graph, Site]:
    """A graph of one site, with its weights as weights and all else as inputs, and the site in it.

    Last come inputs u8[S] for every named size S that is no axis of an operand, because a node may need it all the
    same.
    """
    graph = Graph(site.name)
    mapping: dict[Value, Value] = {}
    for value in dict.fromkeys(site.operands):
        if not isinstance(value, Weight):
            mapping[value] = graph.add_input(value.name, value.type)
    made = graph.add_copy(site.node, mapping)
    graph.set_outputs({f"out{i}": value for i, value in enumerate(made.outputs)})
    add_sizes(graph)
    return graph, Site(made, site.body, tuple(mapping.get(v, v) for v in site.operands), made.outputs)


def add_sizes(graph: Graph) -> None:
    """Inputs u8[S] for every named size S that is no axis of an input: a call of the graph then knows all its sizes."""
    axes = {dim for value in graph.inputs for dim in dims_of(value.type)}
    for name in used_sizes(graph):
        if symbol(name) not in axes:
            graph.add_input(name, TensorType((symbol(name),), "u8"))


class Bodies:
    """Bodies of lone nodes, one for all nodes that differ in nothing but the values they read."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Graph] = {}

    def sites(self, graph: Graph) -> Iterator[Site]:
        """All regions of a graph in order."""
        for node in graph.nodes:
            if node.op.name == "fusion":
                body = node.attrs["body"]
                assert isinstance(body, Graph)
                operands = tuple(value for value in node.inputs if value is not None)
                yield Site(node, body, operands, node.outputs)
            else:
                yield self._alone(node)

    def _alone(self, node: Node) -> Site:
        operands: dict[Value, int] = {}
        for value in node.inputs:
            if value is not None and not isinstance(value, Literal):
                operands.setdefault(value, len(operands))
        pattern = tuple(
            ("literal", repr(v.value)) if isinstance(v, Literal) else None if v is None else (operands[v], v.type)
            for v in node.inputs
        )
        key = (node.op.name, tuple(node.attrs.items()), pattern, tuple(v.type for v in node.outputs))
        if key not in self._known:
            self._known[key] = _wrapped(node, list(operands))
        return Site(node, self._known[key], tuple(operands), node.outputs)


def _wrapped(node: Node, operands: list[Value]) -> Graph:
    """A graph of this node alone."""
    body = Graph(node.op.name.rpartition(".")[2])
    mapping = {value: body.add_input(f"p{i}", value.type) for i, value in enumerate(operands)}
    made = body.add_copy(node, mapping)
    body.set_outputs({f"out{i}" if i else "out": value for i, value in enumerate(made.outputs)})
    return body
