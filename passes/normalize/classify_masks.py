"""classify-masks: masks that only sizes decide become attributes of attention, and all-true ones go away.

Before:

    %i = irx.arange() {stop=S} : i64[S]
    %r = irx.reshape(%i) {shape=[S, 1]} : i64[S, 1]
    %c = irx.le(%i, %r) : bool[S, S]
    %p = irx.reshape(%attention_mask) {shape=[B, 1, 1, S]} : bool[B, 1, 1, S]
    %m = irx.and(%c, %p) : bool[B, 1, S, S]
    %y = irx.attention(%q, %k, %v, %m) {scale=0.125} : f32[B, 8, S, 64]

After:

    %p = irx.reshape(%attention_mask) {shape=[B, 1, 1, S]} : bool[B, 1, 1, S]
    %y = irx.attention(%q, %k, %v, %p) {scale=0.125, causal=true} : f32[B, 8, S, 64]

Nothing is known here about how masks are spelled: each part of a conjunction is evaluated at several sizes and compared
with the masks that have a name (`irx.analysis.masks`). A float mask that hides with very low numbers and adds nothing
else is treated alike; one that also adds a bias stays, and its pattern becomes attributes all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import cast

from irx.analysis.masks import MaskProbe, Visible, is_named
from irx.analysis.values import Prober, ValueFree
from irx.ir.dims import Dim
from irx.ir.graph import Graph, Node, Value
from irx.ir.opdef import Attr
from irx.ir.program import Program
from irx.pipeline.base import Context, Effect, NearMiss, Pass, Report, Site, Stage
from irx.rewrite.cleanup import erase_unused
from irx.rewrite.recorder import Recorder


@dataclass(frozen=True)
class ClassifyMasks(Pass):
    """Turn masks that only sizes decide into the attributes `causal` and `window`."""

    name = "classify-masks"
    stage = Stage.NORMALIZE
    effect = Effect.EXACT

    def run(self, program: Program, ctx: Context) -> Report:
        report = Report()
        for graph in program.graphs.values():
            report.add(classify_masks(graph, program, ctx))
        return report


def classify_masks(graph: Graph, program: Program, ctx: Context) -> Report:
    """Classify the masks of all attention sites of one graph of a program, in place."""
    sites = [node for node in graph.nodes if node.op.name == "attention"]
    known = Masks(MaskProbe(Prober(program.weights, ctx.evaluate), program.sizes, ctx.max_length), ValueFree())
    report = Report()
    for node in sites:
        if node.operand("mask") is not None or node.operand("bias") is not None:
            report.add(_classify(graph, node, known, ctx))
    return report


@dataclass
class Masks:
    """What is known about the value-free masks of one graph; sites that share a mask share its classification."""

    probe: MaskProbe
    free: ValueFree
    _known: dict[tuple[Value, Dim, Dim], Visible | str] = field(default_factory=dict)

    def classify(self, mask: Value, rows: Dim, keys: Dim) -> Visible | str:
        """As `MaskProbe.classify`; a mask that depends on inputs has no name."""
        if mask not in self.free:
            return "the mask depends on inputs"
        if not (is_named(rows) and is_named(keys)):
            return f"the length {rows} or {keys} is an expression"
        key = (mask, rows, keys)
        if key not in self._known:
            self._known[key] = self.probe.classify(mask, rows, keys)
        return self._known[key]


@dataclass
class _Site:
    """One attention node as it is going to be: what is left of its mask and bias, and its attributes."""

    causal: bool
    window: int | None
    kept: list[Value] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)

    def see(self, seen: Visible) -> None:
        self.causal = self.causal or seen.causal
        widths = [w for w in (self.window, seen.window) if w is not None]
        self.window = min(widths) if widths else None
        self.found.append(str(seen))


def _classify(graph: Graph, node: Node, known: Masks, ctx: Context) -> Report:
    q, k = node.inputs[0], node.inputs[1]
    assert q is not None
    assert k is not None
    rows, keys = q.shape[2], k.shape[2]
    site = _Site(bool(node.attr("causal")), cast("int | None", node.attr("window")))
    recorder = Recorder(graph, node, ClassifyMasks.name)
    mask, bias = node.operand("mask"), node.operand("bias")
    parts = list(_conjuncts(mask, known.free, recorder)) if mask is not None else []
    for part in parts:
        _use_mask(site, part, known.classify(part, rows, keys), known.free)
    kept_bias = _use_bias(site, bias, known, rows, keys) if bias is not None else None
    attrs = (site.causal, site.window) == (node.attr("causal"), node.attr("window"))
    unchanged = attrs and len(site.kept) == len(parts) and kept_bias is bias
    if unchanged or not ctx.fuel.take():
        recorder.undo()
        return Report(near_misses=[NearMiss(graph.name, node.loc, reason) for reason in site.reasons])
    _replace(graph, node, site, kept_bias, recorder)
    return Report([Site(graph.name, node.loc, ", ".join(site.found))])


def _use_mask(site: _Site, part: Value, seen: Visible | str, free: ValueFree) -> None:
    if isinstance(seen, Visible):
        site.see(seen)
        return
    site.kept.append(part)
    if part in free:
        site.reasons.append(seen)


def _use_bias(site: _Site, bias: Value, known: Masks, rows: Dim, keys: Dim) -> Value | None:
    """What is left of the bias."""
    seen = known.classify(bias, rows, keys)
    if isinstance(seen, str):
        if bias in known.free:
            site.reasons.append(seen)
        return bias
    if seen.zero or seen.causal or seen.window is not None:
        site.see(seen)
    return None if seen.zero else bias


def _replace(graph: Graph, node: Node, site: _Site, bias: Value | None, recorder: Recorder) -> None:
    mask = reduce(lambda a, b: recorder("and", a, b), site.kept) if site.kept else None
    operands = [*node.inputs, *[None] * 6][:6]
    operands[3:5] = [mask, bias]
    attrs = {**node.attrs, "causal": site.causal, "window": site.window}
    made = recorder("attention", *_trimmed(operands), **attrs)
    graph.replace(node.output, made)
    erase_unused(graph, [node, *recorder.made])


def _trimmed(operands: Sequence[Value | None]) -> Sequence[Value | None]:
    """`operands` without absent ones at the end."""
    last = max(i for i, v in enumerate(operands) if v is not None)
    return operands[: last + 1]


def _conjuncts(mask: Value, free: ValueFree, b: Recorder) -> Iterator[Value]:
    """The parts whose conjunction is `mask`, each broadcasting as the mask does.

    A part that is value-free as a whole is not taken apart.
    """
    node = mask.producer
    if node is None or mask in free:
        yield mask
        return
    operands = [v for v in node.inputs if v is not None]
    if node.op.name == "and":
        for value in operands:
            yield from _conjuncts(value, free, b)
    elif node.op.name == "expand":
        yield from _conjuncts(operands[0], free, b)
    elif node.op.name == "reshape" and (inserted := _inserted_axes(operands[0].shape, mask.shape)) is not None:
        for part in list(_conjuncts(operands[0], free, b)):
            yield _unsqueezed(part, len(operands[0].shape), inserted, b)
    else:
        yield mask


def _inserted_axes(before: Sequence[Dim], after: Sequence[Dim]) -> list[int] | None:
    """The axes of size 1 that a reshape inserts, None where it does anything else."""
    inserted, place = [], 0
    for axis, dim in enumerate(after):
        if place < len(before) and before[place] == dim:
            place += 1
        elif dim == 1:
            inserted.append(axis)
        else:
            return None
    return inserted if place == len(before) else None


def _unsqueezed(value: Value, rank: int, axes: Sequence[int], b: Recorder) -> Value:
    """`value`, which broadcasts to `rank` axes, with axes of size 1 inserted where the whole has them."""
    shape: list[Dim] = [1] * (rank - len(value.shape))
    shape += value.shape
    for axis in axes:
        shape.insert(axis, 1)
    return value if tuple(shape) == value.shape else b("reshape", value, shape=cast(Attr, tuple(shape)))
