"""split-gated: a product whose halves are gate and up becomes two products, of the halves of its weight.

Before:

    %h = irx.linear(%x, $gate_up) : f32[B, S, 3072]
    %g = irx.slice(%h) {axis=2, start=0, stop=1536} : f32[B, S, 1536]
    %u = irx.slice(%h) {axis=2, start=1536, stop=3072} : f32[B, S, 1536]
    %y = irx.swiglu(%g, %u) : f32[B, S, 1536]

After:

    weight $gate_up.gate : f32[1536, 576] = irx.slice($gate_up) {axis=0, start=0, stop=1536}
    weight $gate_up.up : f32[1536, 576] = irx.slice($gate_up) {axis=0, start=1536, stop=3072}
    %g = irx.linear(%x, $gate_up.gate) : f32[B, S, 1536]
    %u = irx.linear(%x, $gate_up.up) : f32[B, S, 1536]
    %y = irx.swiglu(%g, %u) : f32[B, S, 1536]

so that `fuse-gated` finds them. Rows are taken as they are, packed ones too.
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.ir.graph import Graph, Node, Value
from irx.ir.program import Program
from irx.passes.fuse.fuse_gated import GATED
from irx.passes.fuse.projections import Folder, Projection, Rewrites, projection
from irx.pipeline.base import Context, Effect, Pass, Report, Stage
from irx.rewrite.check import Check
from irx.rewrite.recorder import Recorder


@dataclass(frozen=True)
class SplitGated(Pass):
    """Make two products of one that computes gate and up."""

    name = "split-gated"
    stage = Stage.FUSE
    effect = Effect.ROUNDING

    def run(self, program: Program, ctx: Context) -> Report:
        rewrites = Rewrites(Check(ctx.evaluate, program.sizes), ctx.fuel, Folder(program.weights))
        for graph in program.graphs.values():
            for node in [node for node in graph.nodes if node.op.name in GATED]:
                _split(graph, node, rewrites, self.name)
        return rewrites.report


def _split(graph: Graph, node: Node, rewrites: Rewrites, by: str) -> None:
    cuts = [value.producer for value in node.inputs if value is not None and value.producer is not None]
    if len(cuts) != 2 or any(cut.op.name != "slice" for cut in cuts) or cuts[0].inputs != cuts[1].inputs:
        return
    whole = cuts[0].inputs[0]
    product = projection(whole.producer if whole is not None else None)
    if whole is None or product is None:
        rewrites.miss(graph, node, "gate and up are parts of something that is no product with a weight")
        return
    problem = _unfit(graph, whole, cuts)
    if problem is not None:
        rewrites.miss(graph, node, problem)
        return
    b = Recorder(graph, product.node, by)
    names: dict[Value, str] = {}
    made = [_part(b, product, cut, part, names) for cut, part in zip(cuts, ("gate", "up"), strict=True)]
    rewrites.replace(b, [cut.output for cut in cuts], made, product.leaves, names, "gate and up")


def _unfit(graph: Graph, whole: Value, cuts: list[Node]) -> str | None:
    if graph.is_output(whole) or set(graph.users(whole)) != set(cuts):
        return f"%{whole.name} is read elsewhere as well"
    last = len(whole.shape) - 1
    along = all(cut.attr("axis") in (last, -1) and cut.attr("step") == 1 for cut in cuts)
    return None if along else "gate and up are not next to each other in a row"


def _part(b: Recorder, product: Projection, cut: Node, part: str, names: dict[Value, str]) -> Value:
    """The product with the rows of the weight that are the columns of `cut`."""
    start, stop = cut.attr("start"), cut.attr("stop")
    rows = b("slice", product.weight, axis=0, start=start, stop=stop)
    names[rows] = f"{product.weight.name}.{part}"
    operands = [product.x, product.matrix(b, rows)]
    if product.bias is not None:
        operands.append(b("slice", product.bias, axis=0, start=start, stop=stop))
        names[operands[-1]] = f"{product.bias.name}.{part}"
    return b("linear", *operands)
