"""trim-rows: what only leads to a selection of tokens is computed for those tokens alone.

Before:

    graph @prefill(%x: f32[B, S, 576], %y: f32[B, S, 576], %rows: i64[B, R]) -> (out: f32[B, R, 576]) {
      %o = irx.linear(%y, $o) : f32[B, S, 576]
      %h = irx.add(%x, %o) : f32[B, S, 576]
      %n = irx.rms_norm(%h, $norm) {eps=1e-05} : f32[B, S, 576]
      %m = irx.linear(%n, $mlp) : f32[B, S, 576]
      %z = irx.add(%h, %m) : f32[B, S, 576]
      %t = irx.gather_tokens(%z, %rows) : f32[B, R, 576]

After:

    graph @prefill(%x: f32[B, S, 576], %y: f32[B, S, 576], %rows: i64[B, R]) -> (out: f32[B, R, 576]) {
      %y2 = irx.gather_tokens(%y, %rows) : f32[B, R, 576]
      %o = irx.linear(%y2, $o) : f32[B, R, 576]
      %x2 = irx.gather_tokens(%x, %rows) : f32[B, R, 576]
      %h = irx.add(%x2, %o) : f32[B, R, 576]
      %n = irx.rms_norm(%h, $norm) {eps=1e-05} : f32[B, R, 576]
      %m = irx.linear(%n, $mlp) : f32[B, R, 576]
      %z = irx.add(%h, %m) : f32[B, R, 576]

Of a prompt whose last token alone gets logits, the last layer then attends with all tokens, and computes what follows
for one. The selection moves up through nodes that treat tokens independently (`irx.analysis.axes`) while nothing else
reads them, and stops at attention, whose kernel all layers share. `slice-rows` stops where paths meet, so that layers
look alike as long as other passes compare them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from irx.analysis.axes import operand_axes, resized
from irx.analysis.structure import between
from irx.ir.graph import Graph, Loc, Node, Value, Weight
from irx.ir.program import Program
from irx.ir.types import TensorType
from irx.pipeline.base import Context, Effect, Pass, Report, Site, Stage
from irx.rewrite.cleanup import erase_unused

_PRODUCTS = frozenset({"linear", "matmul", "moe"})  # without one of them a selection saves less than it costs
_BOUNDARIES = frozenset({"attention", "kv_attention"})  # stay as in other layers, and so do the projections before them


@dataclass(frozen=True)
class TrimRows(Pass):
    """Compute what leads to selected tokens only, as the rest of the last layer, for those tokens alone."""

    name = "trim-rows"
    stage = Stage.FUSE
    effect = Effect.EXACT

    def run(self, program: Program, ctx: Context) -> Report:
        report = Report()
        for graph in program.graphs.values():
            for gather in [node for node in graph.nodes if node.op.name == "gather_tokens"]:
                region = _region(graph, gather)
                if not _PRODUCTS.intersection(node.op.name for node in region.nodes) or not ctx.fuel.take():
                    continue
                _trim(graph, gather, region)
                what = f"{len(region.nodes)} nodes compute selected tokens only"
                report.sites.append(Site(graph.name, gather.loc, what))
        return report


@dataclass
class _Region:
    """The nodes to compute for fewer rows, from the last to the first, and the axis of tokens of every value that they
    read or compute: None where it is read as a whole."""

    nodes: list[Node]
    axes: dict[Value, int | None]

    def sources(self) -> Iterator[Value]:
        """The values whose rows are selected."""
        made = {node.output for node in self.nodes}
        return (value for value, axis in self.axes.items() if axis is not None and value not in made)


def _selected(gather: Node) -> tuple[Value, Value]:
    """What rows are selected of, and which."""
    x, rows = gather.inputs
    assert x is not None
    assert rows is not None
    return x, rows


def _region(graph: Graph, gather: Node) -> _Region:
    """The largest region that leads to the selection only, and reads what can be selected from."""
    refused: set[Node] = set()
    while True:
        region = _grown(graph, gather, refused)
        unfit = {value for value in region.sources() if not _selectable(value, region.axes[value], gather)}
        readers = {node for node in region.nodes if unfit.intersection(node.inputs)}
        if not readers:
            return region
        refused |= readers


def _grown(graph: Graph, gather: Node, refused: set[Node]) -> _Region:
    x, _ = _selected(gather)
    region = _Region([], {x: 1})
    inside = {gather}
    for node in reversed(between([x], ())):
        if node in refused or node.op.name in _BOUNDARIES or len(node.outputs) != 1:
            continue
        if graph.is_output(node.output) or not inside.issuperset(graph.users(node.output)):
            continue
        if _join(region, node):
            inside.add(node)
    return region


def _join(region: _Region, node: Node) -> bool:
    """Take a node in, where it keeps rows apart and all that read an operand agree on its axis."""
    axis = region.axes.get(node.output)
    axes = operand_axes(node, axis) if axis is not None else None
    if axes is None:
        return False
    known = dict(region.axes)
    for value, place in zip(node.inputs, axes, strict=True):
        if value is not None and known.setdefault(value, place) != place:
            return False
    region.nodes.append(node)
    region.axes = known
    return True


def _selectable(value: Value, axis: int | None, gather: Node) -> bool:
    """True where `gather_tokens` can select rows of the value as the selection does."""
    x, _ = _selected(gather)
    if isinstance(value, Weight) or not isinstance(value.type, TensorType):
        return False
    return axis == 1 and value.shape[:2] == x.shape[:2]


def _trim(graph: Graph, gather: Node, region: _Region) -> None:
    x, rows = _selected(gather)
    fewer: dict[Value, Value] = {}
    for value in region.sources():
        fewer[value] = graph.add("gather_tokens", [value, rows], before=gather, loc=_touched(gather)).output
    for node in reversed(region.nodes):
        axis = region.axes[node.output]
        assert axis is not None
        operands = [v if v is None else fewer.get(v, v) for v in node.inputs]
        attrs = resized(node, axis, rows.shape[1])
        fewer[node.output] = graph.add(node.op, operands, attrs, before=gather, loc=_touched(node)).output
    graph.replace(gather.output, fewer[x])
    erase_unused(graph, [gather])


def _touched(node: Node) -> Loc:
    return node.loc.touched(TrimRows.name)
