"""slice-rows: `prefill` computes logits only for the rows that somebody wants.

Before:

    graph @prefill(%ids: i64[B, S], %pos: i64[B, S], ...) -> (logits: f32[B, S, 49152], ...) {
      ...
      %h = irx.add(%x, %m) : f32[B, S, 576]
      %n = irx.rms_norm(%h, $norm) {eps=1e-05} : f32[B, S, 576]
      %y = irx.linear(%n, $head) : f32[B, S, 49152]

After:

    graph @prefill(%ids: i64[B, S], %pos: i64[B, S], %rows: i64[B, R], ...) -> (logits: f32[B, R, 49152], ...) {
      ...
      %h = irx.add(%x, %m) : f32[B, S, 576]
      %t = irx.gather_tokens(%h, %rows) : f32[B, R, 576]
      %n = irx.rms_norm(%t, $norm) {eps=1e-05} : f32[B, R, 576]
      %y = irx.linear(%n, $head) : f32[B, R, 49152]

The selection moves up through nodes that treat tokens independently (`irx.analysis.axes`) and ends where two paths that
depend on the tokens meet, as in a residual sum: so every layer stays as it was, and looks like the others.
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.analysis.axes import operand_axes, resized
from irx.analysis.values import dependent
from irx.ir.dims import Dim, Range, symbol
from irx.ir.graph import Graph, Node, Value
from irx.ir.program import Program
from irx.ir.types import TensorType
from irx.pipeline.base import Context, Effect, Pass, Report, Site, Stage
from irx.rewrite.cleanup import erase_unused

_ROWS = "rows"


@dataclass(frozen=True)
class SliceRows(Pass):
    """Give `prefill` an input `rows` that says which tokens of each row of the batch get logits."""

    name = "slice-rows"
    stage = Stage.NORMALIZE
    effect = Effect.EXACT

    def run(self, program: Program, ctx: Context) -> Report:
        graph = program.graphs.get("prefill")
        if graph is None:
            return Report(note="there is no prefill")
        if any(value.name == _ROWS for value in graph.inputs):
            return Report(note="prefill has an input rows already")
        if not ctx.fuel.take():
            return Report(note="no fuel is left")
        return _slice(program, graph)


def _slice(program: Program, graph: Graph) -> Report:
    tokens, logits = graph.inputs[0], graph.outputs[0]
    batch, length = tokens.shape[:2]
    chain = _chain(graph, logits, batch, length)
    taken = chain[-1][1] if chain else logits
    count = symbol("R")
    program.sizes.setdefault("R", Range(1, program.sizes.get(str(length), Range()).high))
    rows = graph.add_input(_ROWS, TensorType((batch, count), "i64"))
    graph.inputs.insert(2, graph.inputs.pop())
    value = _gathered(graph, taken, rows, chain[-1][0] if chain else None)
    for node, operand, axis in reversed(chain):
        value = _again(graph, node, operand, value, axis, count)
    graph.outputs[0] = value
    program.meta["rows"] = _ROWS
    erase_unused(graph, [node for node, *_ in chain])
    place = chain[-1][0].loc if chain else logits.producer.loc if logits.producer is not None else None
    assert place is not None, "logits are computed"
    return Report([Site(graph.name, place, f"{len(chain)} nodes compute the wanted rows only")])


def _chain(graph: Graph, logits: Value, batch: Dim, length: Dim) -> list[tuple[Node, Value, int]]:
    """The nodes from the logits up that are computed for the wanted rows only, each with the operand that leads on and
    the token axis of its result; the last operand is where the rows are taken."""
    moving = dependent(graph, [v for v in graph.inputs if isinstance(v.type, TensorType) and length in v.shape])
    chain: list[tuple[Node, Value, int]] = []
    sound = 0  # how much of the chain ends at a value [B, S, ...]
    value, axis = logits, 1
    while (step := _up(graph, value, axis, moving, logits)) is not None:
        node, operand, place = step
        chain.append((node, operand, axis))
        value, axis = operand, place
        sound = len(chain) if axis == 1 and value.shape[0] == batch else sound
    return chain[:sound]


def _up(graph: Graph, value: Value, axis: int, moving: set[Value], logits: Value) -> tuple[Node, Value, int] | None:
    """One step up, where the node that computes `value` has one operand that depends on the tokens."""
    node = value.producer
    used_once = value is logits or (len(graph.users(value)) == 1 and not graph.is_output(value))
    if node is None or not used_once or len(node.outputs) != 1:
        return None
    axes = operand_axes(node, axis)
    if axes is None:
        return None
    leading = [(v, place) for v, place in zip(node.inputs, axes, strict=True) if v is not None and v in moving]
    others = [place for v, place in zip(node.inputs, axes, strict=True) if v not in moving]
    if len(leading) != 1 or any(place is not None for place in others):
        return None
    operand, place = leading[0]
    return None if place is None else (node, operand, place)


def _gathered(graph: Graph, value: Value, rows: Value, before: Node | None) -> Value:
    loc = before.loc if before is not None else value.producer.loc if value.producer is not None else None
    place = loc.touched(SliceRows.name) if loc is not None else None
    return graph.add("gather_tokens", [value, rows], before=before, loc=place).output


def _again(graph: Graph, node: Node, old: Value, new: Value, axis: int, count: Dim) -> Value:
    """`node` with `new`, which has fewer rows, in place of its operand `old`."""
    operands = [new if v is old else v for v in node.inputs]
    made = graph.add(node.op, operands, resized(node, axis, count), before=node, loc=node.loc.touched(SliceRows.name))
    return made.output
