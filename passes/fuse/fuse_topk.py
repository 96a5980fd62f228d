"""fuse-topk: a step for callers that ask for the likeliest tokens only, without logits in memory.

Before:

    graph @decode(%ids: i64[B, 1], ...) -> (logits: f32[B, 1, 49152], ...) {
      ...
      %y = irx.fusion(%h, $norm, $head) {body=@norm-linear.0} : f32[B, 1, 49152]

After, beside it:

    graph @decode_top(%ids: i64[B, 1], ...) -> (top: f32[B, 1, 64], tokens: i64[B, 1, 64], ...) {
      ...
      %top, %tokens = irx.fusion(%h, $norm, $head) {body=@norm-linear-topk.0} : (f32[B, 1, 64], i64[B, 1, 64])

The graph is a copy of `decode` that shares its bodies, so kernels and packed weights too; only the last product is
another: its threads keep the largest logits that they have met. Equal ones are in the order of their tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.ir.graph import Graph, Loc
from irx.ir.program import Program
from irx.passes.fuse.bookkeeping import Grouping
from irx.passes.fuse.nodes import kind
from irx.pipeline.base import Context, Effect, NearMiss, Pass, Report, Stage

STEP, CHOOSING = "decode", "decode_top"


@dataclass(frozen=True)
class FuseTopk(Pass):
    """Give generation a step whose last product gives the `k` likeliest tokens in place of logits."""

    name = "fuse-topk"
    stage = Stage.FUSE
    effect = Effect.EXACT
    k: int = 64

    def run(self, program: Program, ctx: Context) -> Report:
        step = program.graphs.get(STEP)
        if step is None:
            return Report(note=f"there is no {STEP}")
        if CHOOSING in program.graphs:
            return Report(note=f"there is a {CHOOSING} already")
        if "topk" not in ctx.endings:
            return Report(note="no kernel here chooses while it multiplies")
        reason = _obstacle(step)
        if reason is not None:
            return Report(near_misses=[NearMiss(step.name, _place(step), reason)])
        grouping = Grouping(program, self.name, ctx.fuel)
        graph = self._chosen(step, grouping)
        if graph is not None:
            program.graphs[CHOOSING] = graph
        return grouping.report

    def _chosen(self, step: Graph, grouping: Grouping) -> Graph | None:
        """The step with the choice in the region of its last product; None where that cannot be."""
        graph = step.clone(CHOOSING)
        logits = graph.outputs[0]
        product, size = logits.producer, logits.shape[-1]
        assert product is not None and isinstance(size, int)
        attrs = {"k": min(self.k, size), "axis": len(logits.shape) - 1}
        choice = graph.add("topk", [logits], attrs, loc=product.loc)
        names = zip(graph.output_names[1:], graph.outputs[1:], strict=True)
        chosen = dict(zip(("top", "tokens"), choice.outputs, strict=True))
        graph.set_outputs({**chosen, **dict(names)})
        return graph if grouping.group(graph, {product, choice}) is not None else None


def _obstacle(step: Graph) -> str | None:
    """Why the logits of a step are not chosen from as they are computed."""
    logits = step.outputs[0]
    if kind(logits.producer) != "linear":
        return f"%{logits.name} is not what a product gives"
    if not isinstance(logits.shape[-1], int):
        return f"%{logits.name} {logits.type} has no certain number of columns"
    if step.users(logits) or step.outputs.count(logits) > 1:
        return f"%{logits.name} is read elsewhere as well"
    return None


def _place(step: Graph) -> Loc:
    producer = step.outputs[0].producer
    return producer.loc if producer is not None else Loc()
