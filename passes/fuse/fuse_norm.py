"""fuse-norm: a norm joins the product that reads it.

Before:

    %n = irx.rms_norm(%x, $g) {eps=1e-05} : f32[B, S, 576]
    %y = irx.linear(%n, $w) : f32[B, S, 960]

After:

    %y = irx.fusion(%x, $g, $w) {body=@norm-linear.0} : f32[B, S, 960]

A kernel normalizes the rows that it multiplies before it begins. So a norm that several products read is copied into
each of their regions where that is little work beside theirs, and stays alone otherwise. What rounds the rows on their
way into the product (a cast, codes of 8 bits) goes with it in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from irx.ir.graph import Graph, Node
from irx.ir.program import Program
from irx.passes.fuse.bookkeeping import Grouping
from irx.passes.fuse.nodes import PROLOGUES, columns, reads_rows
from irx.pipeline.base import Context, Effect, Pass, Report, Stage
from irx.rewrite.cleanup import erase_unused

_MOST_COPIES = 4
_NARROWEST = 128  # columns of a product beside which the norm of its input is little work


@dataclass(frozen=True)
class FuseNorm(Pass):
    """Let norms and roundings of rows join the products that read them."""

    name = "fuse-norm"
    stage = Stage.FUSE
    effect = Effect.EXACT

    def run(self, program: Program, ctx: Context) -> Report:
        grouping = Grouping(program, self.name, ctx.fuel)
        for graph in program.graphs.values():
            for node in [node for node in graph.reversed_nodes if node.op.name in PROLOGUES]:
                _fuse(graph, node, grouping)
        return grouping.report


def _fuse(graph: Graph, node: Node, grouping: Grouping) -> None:
    readers = graph.users(node.output)
    if not any(reads_rows(reader, node.output) for reader in readers):
        return
    problem = _unfit(graph, node, readers)
    if problem is not None:
        grouping.miss(graph, node, problem)
        return
    for reader in readers[1:]:
        _join(graph, graph.add_copy(node, {}, before=reader), node, reader, grouping)
    grouping.group(graph, {node, readers[0]})


def _join(graph: Graph, copy: Node, node: Node, reader: Node, grouping: Grouping) -> None:
    """One region of the reader and its own copy of the node."""
    before = reader.inputs
    graph.set_inputs(reader, [copy.output if value is node.output else value for value in before])
    if grouping.group(graph, {copy, reader}) is None:
        graph.set_inputs(reader, before)
        erase_unused(graph, [copy])


def _unfit(graph: Graph, node: Node, readers: Sequence[Node]) -> str | None:
    if graph.is_output(node.output):
        return f"the graph returns %{node.output.name}"
    other = next((reader for reader in readers if not reads_rows(reader, node.output)), None)
    if other is not None:
        return f"%{node.output.name} is read by {other.op.qualified()} at {other.loc} as well"
    if len(readers) > _MOST_COPIES:
        return f"{len(readers)} products read %{node.output.name}"
    narrow = next((reader for reader in readers if columns(reader) < _NARROWEST), None)
    if len(readers) > 1 and narrow is not None:
        return f"%{node.output.name} would be computed {len(readers)} times, once for {columns(narrow)} columns"
    return None
