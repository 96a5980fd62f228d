"""dead-nodes: nodes whose results nobody reads, and weights that no graph needs.

Before:

    %a = irx.cumsum(%ids) {axis=1} : i64[B, S]
    %b = irx.embedding(%ids, $w) : f32[B, S, 8]
    return %b

After:

    %b = irx.embedding(%ids, $w) : f32[B, S, 8]
    return %b
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.ir.program import Program
from irx.pipeline.base import Context, Effect, Pass, Report, Site, Stage
from irx.rewrite.cleanup import erase_unused


@dataclass(frozen=True)
class DeadNodes(Pass):
    """Drop pure nodes that nobody reads, and weights that no graph needs."""

    name = "dead-nodes"
    stage = Stage.NORMALIZE
    effect = Effect.EXACT

    def run(self, program: Program, ctx: Context) -> Report:
        report = Report()
        for graph in program.graphs.values():
            erased = erase_unused(graph, list(graph.reversed_nodes))
            report.sites += [Site(graph.name, node.loc, node.op.name) for node in erased]
        before = len(program.weights)
        program.weights.keep({weight.name for weight in program.used_weights()})
        dropped = before - len(program.weights)
        report.note = f"{dropped} unused weights dropped" if dropped else ""
        return report
