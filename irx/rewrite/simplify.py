"""One forward walk of small local simplifications: a function per op says by which value a node can be replaced.

    def add_zero(node: Node, b: Builder) -> Value | None: ...

    report = simplify(graph, {"add": add_zero}, by="remove-noops", fuel=ctx.fuel)

For what needs no pattern. When a node is visited its operands have been simplified; nodes that a simplification adds
are not visited again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from irx.ir.graph import Builder, Graph, Node, Value
from irx.rewrite.cleanup import erase_unused
from irx.rewrite.recorder import Recorder
from irx.rewrite.report import Fuel, Report, Site

Simplification: TypeAlias = Callable[[Node, Builder], "Value | None"]
"""A value of the same type to read instead of the node's, or None."""


def simplify(graph: Graph, simplifications: Mapping[str, Simplification], *, by: str, fuel: Fuel) -> Report:
    """Apply the simplification of each node's op, in order, and drop what nothing reads afterwards."""
    report = Report()
    replaced: list[Node] = []
    for node in graph.nodes:
        simplification = simplifications.get(node.op.name)
        if simplification is None or graph.is_unused(node):
            continue
        builder = Recorder(graph, node, by)
        value = simplification(node, builder)
        if value is None or value.type != node.output.type or not fuel.take():
            builder.undo()
            continue
        graph.replace(node.output, value)
        replaced.append(node)
        report.sites.append(Site(graph.name, node.loc, node.op.name))
    erase_unused(graph, replaced)
    return report
