"""fuse-dequantize: a packed weight is unpacked inside of what reads it, once for every reader.

Before:

    %w = irx.dequantize($embed) : f32[49152, 576]
    %x = irx.embedding(%ids, %w) : f32[B, S, 576]
    ...
    %y = irx.linear(%h, %w) : f32[B, S, 49152]

After:

    %x = irx.fusion(%ids, $embed) {body=@embedding.0} : f32[B, S, 576]
    ...
    %y = irx.fusion(%h, $embed) {body=@linear.0} : f32[B, S, 49152]

where the body of `@linear.0` is `linear(%p0, dequantize(%p1))`. A kernel unpacks in registers what it reads, so two
readers cost nothing, and the floats are never in memory. A weight stored in a narrower float and cast to a wider
one is read in the same way. Products, lookups and experts can do that; others are near misses.
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.analysis.precision import holds
from irx.ir.graph import Graph, Node, Weight
from irx.ir.program import Program
from irx.ir.types import is_float
from irx.passes.fuse.bookkeeping import Grouping
from irx.pipeline.base import Context, Effect, Pass, Report, Stage
from irx.rewrite.cleanup import erase_unused

_READERS = {"linear": ("weight",), "embedding": ("weight",), "moe": ("gate_up", "down")}


@dataclass(frozen=True)
class FuseDequantize(Pass):
    """Put the unpacking of weights into the products and lookups that read them."""

    name = "fuse-dequantize"
    stage = Stage.FUSE
    effect = Effect.EXACT

    def run(self, program: Program, ctx: Context) -> Report:
        grouping = Grouping(program, self.name, ctx.fuel)
        for graph in program.graphs.values():
            unpacking = [node for node in graph.nodes if _unpacks(node)]
            for reader in dict.fromkeys(user for node in unpacking for user in graph.users(node.output)):
                _fuse(graph, reader, grouping)
            _report(graph, grouping)
        return grouping.report


def _fuse(graph: Graph, reader: Node, grouping: Grouping) -> None:
    """One region of the reader and a copy of what unpacks each of its weights."""
    weights = [reader.operand(name) for name in _READERS.get(reader.op.name, ())]
    shared = [v.producer for v in weights if v is not None and v.producer is not None]
    unpacking = [node for node in dict.fromkeys(shared) if _unpacks(node)]
    if not unpacking:
        return
    own = [graph.add_copy(node, {}, before=reader) for node in unpacking]
    before, copies = reader.inputs, {old.output: new.output for old, new in zip(unpacking, own, strict=True)}
    graph.set_inputs(reader, [v if v is None else copies.get(v, v) for v in before])
    if grouping.group(graph, {reader, *own}) is None:
        graph.set_inputs(reader, before)
    erase_unused(graph, [*own, *unpacking])


def _unpacks(node: Node) -> bool:
    """A packed weight is unpacked, or one that is stored in a narrower float is widened."""
    if node.op.name == "dequantize":
        return True
    source = node.inputs[0] if node.op.name == "cast" else None
    return isinstance(source, Weight) and is_float(source.dtype) and holds(node.output.dtype, source.dtype)


def _report(graph: Graph, grouping: Grouping) -> None:
    """Weights that are still unpacked for somebody."""
    for node in graph.nodes:
        if node.op.name == "dequantize":
            users = graph.users(node.output)
            reason = f"{users[0].op.qualified()} cannot read a packed weight" if users else "the graph returns it"
            grouping.miss(graph, node, reason)
