"""raise-attention: attention spelled out becomes `attention`, with the KV heads it had before they were repeated.

Before:

    %kt = irx.permute(%k) {order=[0, 1, 3, 2]} : f32[B, 8, 64, S]
    %a = irx.matmul(%q, %kt) : f32[B, 8, S, S]
    %b = irx.mul(%a, 0.125) : f32[B, 8, S, S]
    %m = irx.where(%visible, 0.0, -3.4e+38) : f32[1, 1, S, S]
    %c = irx.add(%b, %m) : f32[B, 8, S, S]
    %p = irx.softmax(%c) {axis=3} : f32[B, 8, S, S]
    %y = irx.matmul(%p, %v) : f32[B, 8, S, 64]

After:

    %y = irx.attention(%q, %k, %v, %visible) {scale=0.125} : f32[B, 8, S, 64]

Recognised are scales by multiplication and division, soft caps, masks that are added or filled in, biases, sinks, the
subtraction of the maximum, and casts anywhere. In `attention` nodes that a frontend made, float biases that only hide
keys become masks, a sum of mask and bias is taken apart, and repeated KV heads are found. What a mask means is left to
`classify-masks`. Every site is compared with its spelling on random operands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from irx.analysis.values import ValueFree
from irx.errors import TypeRuleError
from irx.ir.dims import Dim
from irx.ir.graph import Builder, Graph, Node, Value
from irx.ir.program import Program
from irx.passes.normalize.attention.additive import Added, Condition, take_apart
from irx.passes.normalize.attention.check import raised_error
from irx.passes.normalize.attention.heads import unrepeated
from irx.passes.normalize.attention.spelled import NotAttention, Spelled, softmaxes, walk
from irx.pipeline.base import Context, Effect, NearMiss, Pass, Report, Site, Stage
from irx.rewrite.cleanup import erase_unused
from irx.rewrite.recorder import Recorder


@dataclass(frozen=True)
class RaiseAttention(Pass):
    """Recognise attention that is spelled out, additive masks, and repeated KV heads."""

    name = "raise-attention"
    stage = Stage.NORMALIZE
    effect = Effect.ROUNDING

    def run(self, program: Program, ctx: Context) -> Report:
        report = Report()
        for graph in program.graphs.values():
            raising = _Raising(graph, program, ctx)
            for softmax in list(softmaxes(graph)):
                raising.spelled(softmax)
            for node in [n for n in graph.nodes if n.op.name == "attention"]:
                raising.biased(node)
            for node in [n for n in graph.nodes if n.op.name == "attention"]:
                raising.repeated(node)
            report.add(raising.report)
        return report


@dataclass
class _Made:
    """A candidate: the new value, and what the comparison needs to know."""

    value: Value
    leaves: list[Value]
    masks: list[Condition] = field(default_factory=list)


@dataclass
class _Raising:
    """The work on one graph."""

    graph: Graph
    program: Program
    ctx: Context
    report: Report = field(default_factory=Report)
    free: ValueFree = field(default_factory=ValueFree)

    def spelled(self, softmax: Node) -> None:
        """Raise the attention around a softmax, if there is one."""
        try:
            found = walk(self.graph, softmax, self.free)
        except NotAttention as error:
            self._miss(softmax, str(error))
            return
        if found is not None:
            self._replace(found.root, "attention", lambda b: _raised(found, b))

    def biased(self, node: Node) -> None:
        """Take the bias of an attention node apart."""
        bias = node.operand("bias")
        added = take_apart(bias, self.free) if bias is not None else Added()
        if bias is not None and (added.masks or [term.value for term in added.biases] != [bias]):
            self._replace(node, "mask", lambda b: _split(node, added, b))

    def repeated(self, node: Node) -> None:
        """Let an attention node read KV heads as they were before they were repeated."""
        q, k, v = node.inputs[:3]
        if q is None or k is None or v is None or k.shape[1] != q.shape[1]:
            return
        if k.producer is not None and v.producer is not None:
            self._replace(node, "grouped heads", lambda b: _grouped(node, k, v, b))

    def _replace(self, root: Node, what: str, build: Callable[[Builder], _Made | str | None]) -> None:
        recorder = Recorder(self.graph, root, RaiseAttention.name)
        try:
            made = build(recorder)
        except TypeRuleError as refusal:
            made = refusal.what
        error, reason = self._error(root, made) if isinstance(made, _Made) else (None, made or "")
        if reason:
            self._miss(root, reason)
        if reason or not isinstance(made, _Made) or not self.ctx.fuel.take():
            recorder.undo()
            return
        self.graph.replace(root.output, made.value)
        self.report.sites.append(Site(self.graph.name, root.loc, what, error))
        erase_unused(self.graph, [root, *recorder.made])

    def _error(self, root: Node, made: _Made) -> tuple[float | None, str]:
        """The error of the comparison, and what is wrong with it."""
        limit = root.op.tolerance.of(root.output.dtype)
        error = raised_error(
            root.output, made.value, made.leaves, made.masks, self.program, self.free, self.ctx.evaluate
        )
        failed = error is not None and not error <= limit
        return error, f"the check failed: error {error:.1e} is above {limit:.0e}" if failed else ""

    def _miss(self, node: Node, reason: str) -> None:
        self.report.near_misses.append(NearMiss(self.graph.name, node.loc, reason))


def _raised(found: Spelled, b: Builder) -> _Made | str:
    """The attention node for what was found, in the shape of the spelled result."""
    result = found.root.output
    lead = found.lead
    if len(lead) not in (1, 2):
        return f"the logits have {len(lead) + 2} axes"
    q, v = _with_lead(found.q, lead, b), _with_lead(found.v, lead, b)
    source = _before_transpose(found.keys)
    k = _with_lead(source or b("permute", found.keys, order=_swapped(found.keys)), lead, b)
    heads = q.shape[1]
    extra = [found.added.mask(b, lead), found.added.bias(b, lead)]
    sinks = found.sinks
    if sinks is not None and sinks.shape != (heads,):
        return f"the sinks are {sinks.type} for {heads} heads"
    attrs: dict[str, Any] = {"scale": found.scale}
    attrs |= {"softcap": found.softcap} if found.softcap is not None else {}
    made = b("attention", *_trimmed([q, k, v, *extra, sinks]), **attrs)
    made = made if made.shape == result.shape else b("reshape", made, shape=result.shape)
    made = made if made.dtype == result.dtype else b("cast", made, dtype=result.dtype)
    leaves = [found.q, source or found.keys, found.v, *([sinks] if sinks is not None else [])]
    return _Made(made, leaves, found.added.masks)


def _with_lead(x: Value, lead: tuple[Dim, ...], b: Builder) -> Value:
    """x [..., M, N] with two leading axes: those of the logits, 1 where x has 1."""
    own = x.shape[:-2]
    if len(lead) == 1:
        return b("reshape", x, shape=(*own, 1, *x.shape[-2:]))
    if len(own) == 2:
        return x
    return b("reshape", x, shape=(*lead, *x.shape[-2:]))


def _swapped(x: Value) -> tuple[int, ...]:
    """The order of axes with the last two exchanged."""
    rank = len(x.shape)
    return (*range(rank - 2), rank - 1, rank - 2)


def _before_transpose(keys: Value) -> Value | None:
    """[..., T, D] where `keys` [..., D, T] is its transpose."""
    node = keys.producer
    transposes = node is not None and node.op.name == "permute" and node.attr("order") == _swapped(keys)
    return node.inputs[0] if node is not None and transposes else None


def _split(node: Node, added: Added, b: Builder) -> _Made:
    """The attention node with masks and biases apart."""
    masks = list(added.masks)
    old = node.operand("mask")
    if old is not None:
        masks.append(Condition(old))
    operands = [*node.inputs, *[None] * 6][:6]
    lead = node.output.shape[:2]
    operands[3], operands[4] = Added(masks).mask(b, lead), added.bias(b, lead)
    made = b("attention", *_trimmed(operands), **node.attrs)
    leaves = [v for i, v in enumerate(node.inputs) if v is not None and i not in (3, 4)]
    return _Made(made, leaves, masks)


def _grouped(node: Node, k: Value, v: Value, b: Builder) -> _Made | None:
    """The attention node with the KV heads that `k` and `v` repeat; None where they repeat nothing."""
    keys, values = unrepeated(k, b), unrepeated(v, b)
    if keys is None or values is None or keys.shape[1] != values.shape[1]:
        return None
    made = b("attention", node.inputs[0], keys, values, *node.inputs[3:], **node.attrs)
    leaves = [x for x in (node.inputs[0], keys, values, *node.inputs[4:]) if x is not None]
    mask = node.operand("mask")
    return _Made(made, leaves, [Condition(mask)] if mask is not None else [])


def _trimmed(operands: list[Value | None]) -> list[Value | None]:
    while operands and operands[-1] is None:
        operands.pop()
    return operands
