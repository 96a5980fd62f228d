"""Removing what nothing reads any more."""

from __future__ import annotations

from collections.abc import Iterable

from irx.ir.graph import Graph, Node


def erase_unused(graph: Graph, nodes: Iterable[Node]) -> list[Node]:
    """Erase those of `nodes` that nothing reads, then what only they read; never an impure op. Returns all erased."""
    erased: dict[Node, None] = {}
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node in erased or not node.op.pure or not graph.is_unused(node):
            continue
        operands = [v.producer for v in node.inputs if v is not None and v.producer is not None]
        graph.erase(node)
        erased[node] = None
        pending += operands
    return list(erased)
