"""fold-scale: a factor of the queries becomes part of the attention's own scale.

Before:

    %s = irx.mul(%q, 0.125) : f32[B, S, 64]
    %r = irx.reshape(%s) {shape=[B, S, 4, 16]} : f32[B, S, 4, 16]
    %p = irx.permute(%r) {order=[0, 2, 1, 3]} : f32[B, 4, S, 16]
    %a = irx.attention(%p, %k, %v) {scale=1.0} : f32[B, 4, S, 16]

After:

    %r = irx.reshape(%q) {shape=[B, S, 4, 16]} : f32[B, S, 4, 16]
    %p = irx.permute(%r) {order=[0, 2, 1, 3]} : f32[B, 4, S, 16]
    %a = irx.attention(%p, %k, %v) {scale=0.125} : f32[B, 4, S, 16]

It is looked for behind views and rotations, as far as nothing else reads the values. Without it the projection of the
queries can be merged with those of keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.ir.graph import Graph, Node, Value
from irx.ir.program import Program
from irx.passes.fuse.nodes import only_reader
from irx.passes.fuse.projections import Folder, Rewrites
from irx.pipeline.base import Context, Effect, Pass, Report, Stage
from irx.rewrite.check import Check
from irx.rewrite.match import describe, scalar
from irx.rewrite.recorder import Recorder

_ATTENTION = ("attention", "kv_attention")
_LINEAR = frozenset({"reshape", "permute", "slice", "rope"})  # a factor may stand before or behind these


@dataclass(frozen=True)
class FoldScale(Pass):
    """Move factors of queries into the scale of attention."""

    name = "fold-scale"
    stage = Stage.FUSE
    effect = Effect.ROUNDING

    def run(self, program: Program, ctx: Context) -> Report:
        rewrites = Rewrites(Check(ctx.evaluate, program.sizes), ctx.fuel, Folder(program.weights))
        for graph in program.graphs.values():
            for node in [node for node in graph.nodes if node.op.name in _ATTENTION]:
                _fold(graph, node, rewrites, self.name)
        return rewrites.report


def _fold(graph: Graph, attention: Node, rewrites: Rewrites, by: str) -> None:
    path = _path(attention)
    factor = path[-1] if path else None
    if factor is None or factor.op.name != "mul":
        return
    number, x = _factor(factor)
    problem = _unfit(graph, factor, path, x)
    if number is None or x is None or problem is not None:
        rewrites.miss(graph, factor, problem or f"{describe(factor.inputs[0])} is not multiplied by a number")
        return
    b = Recorder(graph, attention, by)
    query: Value = x
    for node in reversed(path[:-1]):
        query = b(node.op.name, query, *node.inputs[1:], **node.attrs)
    scale = float(str(attention.attr("scale"))) * number
    made = b(attention.op.name, query, *attention.inputs[1:], **{**attention.attrs, "scale": scale})
    leaves = [x, *(v for node in (attention, *path) for v in node.inputs[1:] if v is not None)]
    rewrites.replace(b, [attention.output], [made], leaves, {}, "scale")


def _path(attention: Node) -> list[Node]:
    """The views and rotations behind the query, from the last to the first, and what stands before them."""
    path: list[Node] = []
    value = attention.inputs[0]
    while value is not None and value.producer is not None:
        path.append(value.producer)
        if value.producer.op.name not in _LINEAR:
            break
        value = value.producer.inputs[0]
    return path


def _factor(node: Node) -> tuple[float | None, Value | None]:
    first, second = node.inputs
    for number, x in ((scalar(first), second), (scalar(second), first)):
        if number is not None:
            return float(number), x
    return None, None


def _unfit(graph: Graph, factor: Node, path: list[Node], x: Value | None) -> str | None:
    if x is not None and x.type != factor.output.type:
        return f"%{factor.output.name} has another type than {describe(x)}"
    shared = next((node for node in path if only_reader(graph, node.output) is None), None)
    return None if shared is None else f"%{shared.output.name} is read elsewhere as well"
