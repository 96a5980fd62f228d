"""remove-noops: nodes that return their operand unchanged, and casts, reshapes, permutes and expands in a row.

Before:

    %a = irx.cast(%x) {dtype="f32"} : f32[B, S, 8]          // x is bf16
    %b = irx.cast(%a) {dtype="bf16"} : bf16[B, S, 8]
    %c = irx.slice(%b) {axis=0, stop=B} : bf16[B, S, 8]
    %d = irx.add(%c, 0) : bf16[B, S, 8]
    %e = irx.reshape(%d) {shape=[B*S, 8]} : bf16[B*S, 8]
    %f = irx.reshape(%e) {shape=[B, S, 2, 4]} : bf16[B, S, 2, 4]

After:

    %f = irx.reshape(%x) {shape=[B, S, 2, 4]} : bf16[B, S, 2, 4]

A slice with a step is never a no-op, and a cast to a narrower dtype and back rounds: both stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from irx.analysis.precision import holds
from irx.ir.dims import Dim
from irx.ir.graph import Builder, Node, Value
from irx.ir.program import Program
from irx.pipeline.base import Context, Effect, Pass, Report, Stage
from irx.rewrite.match import scalar
from irx.rewrite.simplify import Simplification, simplify


@dataclass(frozen=True)
class RemoveNoops(Pass):
    """Drop nodes that return their operand unchanged; merge casts, reshapes, permutes and expands in a row."""

    name = "remove-noops"
    stage = Stage.NORMALIZE
    effect = Effect.EXACT

    def run(self, program: Program, ctx: Context) -> Report:
        report = Report()
        for graph in program.graphs.values():
            report.add(simplify(graph, _SIMPLIFICATIONS, by=self.name, fuel=ctx.fuel))
        return report


def _first(node: Node) -> Value:
    value = node.inputs[0]
    assert value is not None, f"{node!r} lacks its first operand"
    return value


def _behind(value: Value, op: str) -> Value | None:
    """The operand of the node that computes `value`, where that is an `op`."""
    node = value.producer
    return _first(node) if node is not None and node.op.name == op else None


def _cast(node: Node, b: Builder) -> Value | None:
    x = _first(node)
    inner = _behind(x, "cast")
    if inner is not None and holds(x.dtype, inner.dtype):
        return inner if inner.dtype == node.output.dtype else b("cast", inner, dtype=node.output.dtype)
    return x if x.type == node.output.type else None


def _reshape(node: Node, b: Builder) -> Value | None:
    x = _first(node)
    inner = _behind(x, "reshape")
    if x.type == node.output.type or inner is None:
        return x
    return inner if inner.type == node.output.type else b("reshape", inner, shape=node.output.shape)


def _expand(node: Node, b: Builder) -> Value | None:
    inner = _behind(_first(node), "expand")
    return _first(node) if inner is None else b("expand", inner, shape=node.output.shape)


def _permute(node: Node, b: Builder) -> Value | None:
    x = _first(node)
    inner = _behind(x, "permute")
    order = _order(node)
    if inner is not None:
        assert x.producer is not None, "a permuted value has a producer"
        first = _order(x.producer)
        x, order = inner, tuple(first[axis] for axis in order)
    if order == tuple(range(len(order))):
        return x
    return b("permute", x, order=order) if inner is not None else None


def _order(node: Node) -> tuple[int, ...]:
    order = node.attr("order")
    assert isinstance(order, tuple), "order is a tuple"
    return tuple(int(str(axis)) % len(order) for axis in order)


def _slice(node: Node, b: Builder) -> Value | None:
    whole = node.attr("start") == 0 and node.attr("step") == 1
    return _first(node) if whole else None  # that no element is cut off is seen in the equal type


def _neutral(number: int, *places: int) -> Simplification:
    """The other operand, where the one at one of `places` is `number`."""

    def drop(node: Node, b: Builder) -> Value | None:
        for place in places:
            other = node.inputs[1 - place]
            if scalar(node.inputs[place]) == number and other is not None and other.type == node.output.type:
                return other
        return None

    return drop


def _unbounded(node: Node, b: Builder) -> Value | None:
    return _first(node) if node.attr("low") is None and node.attr("high") is None else None


def _unpadded(node: Node, b: Builder) -> Value | None:
    return _first(node)  # nothing was added where the type stays the same


def _concat(node: Node, b: Builder) -> Value | None:
    """Without empty operands: the only one, or the value they are all slices of, one after the other."""
    axis = _axis(node)
    pieces = [v for v in node.inputs if v is not None and v.shape[axis] != 0]
    if len(pieces) == 1:
        return pieces[0]
    joined = _joined(pieces, axis)
    if joined is not None and joined.type == node.output.type:
        return joined
    return b("concat", *pieces, axis=axis) if len(pieces) < len(node.inputs) else None


def _joined(pieces: Sequence[Value], axis: int) -> Value | None:
    """What `pieces` are consecutive slices of, from its beginning on."""
    whole = _behind(pieces[0], "slice") if pieces else None
    end: Dim = 0
    for piece in pieces:
        cut = piece.producer
        if cut is None or cut.op.name != "slice" or cut.inputs[0] is not whole:
            return None
        if _axis(cut) != axis or cut.attr("start") != end or cut.attr("step") != 1:
            return None
        end = end + piece.shape[axis]
    return whole


def _axis(node: Node) -> int:
    return int(str(node.attr("axis"))) % len(node.output.shape)


_SIMPLIFICATIONS: dict[str, Simplification] = {
    "cast": _cast,
    "reshape": _reshape,
    "expand": _expand,
    "permute": _permute,
    "slice": _slice,
    "add": _neutral(0, 0, 1),
    "sub": _neutral(0, 1),
    "mul": _neutral(1, 0, 1),
    "div": _neutral(1, 1),
    "pow": _neutral(1, 1),
    "clamp": _unbounded,
    "pad": _unpadded,
    "concat": _concat,
}
