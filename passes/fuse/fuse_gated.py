"""fuse-gated: gate and up projection and the activation that joins them become one region.

Before:

    %g = irx.linear(%x, $gate) : f32[B, S, 1536]
    %u = irx.linear(%x, $up) : f32[B, S, 1536]
    %y = irx.swiglu(%g, %u) : f32[B, S, 1536]

After:

    %y = irx.fusion(%x, $gate, $up) {body=@linear-swiglu.0} : f32[B, S, 1536]

The projections stay two products, so that a kernel has a row of either at hand when it joins them. Halves of one
product are no match: `split-gated` makes two of it first. Nor are matrices that are stored in different formats.
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.ir.graph import Graph, Node, Value, Weight
from irx.ir.program import Program
from irx.passes.fuse.bookkeeping import Grouping
from irx.passes.fuse.nodes import kind, only_reader, product_input
from irx.pipeline.base import Context, Effect, Pass, Report, Stage
from irx.rewrite.match import describe

GATED = ("swiglu", "geglu")


@dataclass(frozen=True)
class FuseGated(Pass):
    """Join gate and up projection with the activation between them."""

    name = "fuse-gated"
    stage = Stage.FUSE
    effect = Effect.EXACT

    def run(self, program: Program, ctx: Context) -> Report:
        grouping = Grouping(program, self.name, ctx.fuel)
        for graph in program.graphs.values():
            for node in [node for node in graph.nodes if node.op.name in GATED]:
                _fuse(graph, node, grouping)
        return grouping.report


def _fuse(graph: Graph, node: Node, grouping: Grouping) -> None:
    gate, up = node.inputs
    problem = _unfit(graph, gate) or _unfit(graph, up)
    if problem is None and _source(gate) is not _source(up):
        problem = f"gate reads {describe(_source(gate))}, but up reads {describe(_source(up))}"
    if problem is None and _stored(gate) != _stored(up):
        problem = f"gate is stored as {', '.join(_stored(gate))}, but up as {', '.join(_stored(up))}"
    if problem is not None:
        grouping.miss(graph, node, problem)
        return
    grouping.group(graph, {node, *(v.producer for v in (gate, up) if v is not None and v.producer is not None)})


def _unfit(graph: Graph, value: Value | None) -> str | None:
    if value is None or kind(value.producer) != "linear" or _source(value) is None:
        return f"{describe(value)} is no product"
    return None if only_reader(graph, value) is not None else f"{describe(value)} is read elsewhere as well"


def _stored(value: Value | None) -> list[str]:
    """The formats of the matrices that a product reads: a kernel walks through both in step."""
    inputs = () if value is None or value.producer is None else value.producer.inputs
    return sorted({v.dtype for v in inputs if isinstance(v, Weight) and len(v.shape) > 1})


def _source(value: Value | None) -> Value | None:
    return None if value is None or value.producer is None else product_input(value.producer)
