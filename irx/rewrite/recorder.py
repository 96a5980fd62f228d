"""A builder that can take its nodes back, for rewrites that are tried before they are accepted."""

from __future__ import annotations

from irx.ir.graph import Builder, Graph, Node, Operand, Value
from irx.ir.opdef import Attr


class Recorder(Builder):
    """Adds nodes before `before`, at its location with `by` added to the passes that touched it."""

    def __init__(self, graph: Graph, before: Node, by: str) -> None:
        super().__init__(graph, before, before.loc.touched(by))
        self.made: list[Node] = []

    def many(self, op: str, *inputs: Operand, **attrs: Attr) -> tuple[Value, ...]:
        """Add a node and remember it."""
        node = self.graph.add(op, inputs, attrs, before=self.before, loc=self.loc)
        self.made.append(node)
        return node.outputs

    def undo(self) -> None:
        """Erase all nodes made so far."""
        for node in reversed(self.made):
            self.graph.erase(node)
        self.made.clear()
