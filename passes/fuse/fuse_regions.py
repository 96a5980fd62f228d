"""fuse-regions: what is left over and works on the same rows becomes one region.

Before:

    %s = irx.add(%x, %y) : f32[B, S, 576]
    %n = irx.rms_norm(%s, $g) {eps=1e-06} : f32[B, S, 576]

After, where something else reads %s as well:

    %s, %n = irx.fusion(%x, %y, $g) {body=@add-norm.0} : (f32[B, S, 576], f32[B, S, 576])

Elementwise ops, what broadcasts, views, norms, softmax and reductions along rows join where their shapes agree and
nothing outside lies between them. Those that save most bytes (what is neither written to memory nor read again) are
joined first; the number of nodes does not count.
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.ir.program import Program
from irx.passes.fuse.bookkeeping import Grouping
from irx.passes.fuse.clusters import Clustering
from irx.pipeline.base import Context, Effect, Pass, Report, Stage
from irx.rewrite.check import small_sizes


@dataclass(frozen=True)
class FuseRegions(Pass):
    """Group the remaining elementwise, broadcast, shape and reduction ops by their rows."""

    name = "fuse-regions"
    stage = Stage.FUSE
    effect = Effect.EXACT

    def run(self, program: Program, ctx: Context) -> Report:
        grouping = Grouping(program, self.name, ctx.fuel)
        for graph in program.graphs.values():
            for nodes in Clustering(graph, {"T": 1, **small_sizes(program.sizes)}).run():
                grouping.group(graph, nodes)
        return grouping.report
