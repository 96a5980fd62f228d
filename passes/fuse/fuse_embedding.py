"""fuse-embedding: what is done with looked up rows element by element joins the lookup, other lookups included.

Before:

    %tokens = irx.embedding(%ids, $wte) : f32[B, S, 768]
    %places = irx.embedding(%positions, $wpe) : f32[1, S, 768]
    %x = irx.add(%tokens, %places) : f32[B, S, 768]

After:

    %x = irx.fusion(%ids, $wte, %positions, $wpe) {body=@embedding-add.0} : f32[B, S, 768]

Factors, casts and sums join; a norm behind them reads whole rows and stays with what comes next.
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.ir.graph import Graph, Node
from irx.ir.program import Program
from irx.passes.fuse.bookkeeping import Grouping
from irx.passes.fuse.nodes import kind, only_reader, operands
from irx.pipeline.base import Context, Effect, Pass, Report, Stage


@dataclass(frozen=True)
class FuseEmbedding(Pass):
    """Let elementwise ops join the table lookup before them."""

    name = "fuse-embedding"
    stage = Stage.FUSE
    effect = Effect.EXACT

    def run(self, program: Program, ctx: Context) -> Report:
        grouping = Grouping(program, self.name, ctx.fuel)
        for graph in program.graphs.values():
            for node in [node for node in graph.nodes if node.op.elementwise]:
                _fuse(graph, node, grouping)
        return grouping.report


def _fuse(graph: Graph, node: Node, grouping: Grouping) -> None:
    read = [value for value in dict.fromkeys(operands(node)) if kind(value.producer) == "embedding"]
    if not read:
        return
    own = [v for v in read if only_reader(graph, v) is node]
    if any(value.shape == node.output.shape for value in own):
        grouping.group(graph, {node, *(v.producer for v in own if v.producer is not None)})
    elif own:
        grouping.miss(graph, node, f"%{own[0].name} is broadcast")
