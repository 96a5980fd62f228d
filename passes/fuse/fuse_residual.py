"""fuse-residual: the sum of a product and the stream that goes past it joins the product's region.

Before:

    %o = irx.linear(%a, $w) : f32[B, S, 576]
    %y = irx.add(%x, %o) : f32[B, S, 576]

After:

    %y = irx.fusion(%x, %a, $w) {body=@linear-add.0} : f32[B, S, 576]

Of two products that are added, the sum joins the later one.
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.ir.program import Program
from irx.passes.fuse.bookkeeping import Grouping
from irx.passes.fuse.fuse_epilogue import fuse
from irx.pipeline.base import Context, Effect, Pass, Report, Stage


@dataclass(frozen=True)
class FuseResidual(Pass):
    """Let residual sums join the product before them."""

    name = "fuse-residual"
    stage = Stage.FUSE
    effect = Effect.EXACT

    def run(self, program: Program, ctx: Context) -> Report:
        grouping = Grouping(program, self.name, ctx.fuel)
        for graph in program.graphs.values():
            for node in [node for node in graph.nodes if node.op.elementwise]:
                fuse(graph, node, grouping, residual=True)
        return grouping.report
