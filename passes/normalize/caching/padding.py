"""Positions that a model counts itself, leaving out the tokens it takes for padding.

    %real = irx.ne(%ids, 1) : bool[B, S]
    %ones = irx.cast(%real) {dtype="i64"} : i64[B, S]
    %count = irx.cumsum(%ones) {axis=1} : i64[B, S]
    %places = irx.mul(%count, %ones) : i64[B, S]

A graph with a cache is told positions, -1 for padding, so such a count runs over tokens that are all real: the
comparison is true everywhere. Only comparisons that nothing but a count along the sequence reads are taken for this.
"""

from __future__ import annotations

from irx.ir.graph import Builder, Graph, Node, Value
from irx.rewrite.match import scalar


def count_all_tokens(graph: Graph, tokens: Value) -> list[int]:
    """Let the model's own counts of tokens count every token, in place; gives the ids that were left out."""
    found: list[int] = []
    for node in list(graph.users(tokens)):
        padding = scalar(node.inputs[1]) if node.op.name == "ne" and node.inputs[0] is tokens else None
        if padding is None or not _is_count(graph, node):
            continue
        b = Builder(graph, before=node)
        graph.replace(node.output, b("full", shape=node.output.shape, value=True, dtype="bool"))
        graph.erase(node)
        found.append(int(padding))
    return found


def _is_count(graph: Graph, node: Node) -> bool:
    """True where the comparison is summed up along the sequence, and does nothing else but mask that sum."""
    pending, counted = [node.output], False
    while pending:
        value = pending.pop()
        if graph.is_output(value):
            return False
        for user in graph.users(value):
            if user.op.name in ("cast", "reshape", "expand"):
                pending.append(user.output)
            elif user.op.name == "cumsum" and user.attr("axis") in (1, -1):
                counted = True
            elif user.op.name != "mul":
                return False
    return counted
