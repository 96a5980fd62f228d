"""merge-tokens: every layer of an encoder merges the tokens that are most alike, and the later ones have fewer.

Before:

    %a = irx.attention(%q, %k, %v) {scale=0.125} : f32[B, 12, S, 64]
    ...
    %x = irx.add(%h, %o) : f32[B, S, 768]
    ...
    %b = irx.attention(%q2, %k2, %v2) {scale=0.125} : f32[B, 12, S, 64]

After, with per_layer=8 and at least 17 tokens:

    %x = irx.add(%h, %o) : f32[B, S, 768]
    %from, %to, %slots = irx.match_tokens(%k, %ones, %received) {count=8, alpha=1.0}
    %m, %sizes = irx.merge_tokens(%x, %ones, %from, %to) : f32[B, S - 8, 768], f32[B, S - 8]
    %bias = irx.log(%sizes) ...                                                // [B, 1, 1, S - 8]
    ...
    %b = irx.attention(%q2, %k2, %v2, none, %bias) {scale=0.125} : f32[B, 12, S - 8, 64]

A merged token counts in later attention as often as it stands for tokens: the logarithm of its size is added to the
logits of its key. Padding has size 0: it is merged first, and merging it changes nothing. At the end of the last layer
every token gets the values of the one that it was merged into, so that the results keep their shape and their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from irx.analysis.blocks import Unit, find_blocks
from irx.errors import TypeRuleError
from irx.ir.dims import Dim, Range, SymDim, maximum, minimum
from irx.ir.graph import Builder, Graph, Loc, Node, Value
from irx.ir.program import Program
from irx.passes.tokens.shortening import NotShortened, Shortened, token_axis
from irx.pipeline.base import Context, Effect, NearMiss, Pass, Report, Site, Stage
from irx.rewrite.cleanup import erase_unused
from irx.rewrite.report import Fuel

_SMALLEST = 1e-30  # a size whose logarithm hides a key in float32


@dataclass(frozen=True)
class MergeTokens(Pass):
    """Merge the `per_layer` tokens of the highest info-degree R - `alpha` * A after the attention of every layer.

    R is the largest cosine of a token's key with one of the other half, A the attention that the first token pays it,
    or with `first=0`, for a model without one that stands for the whole, what it receives on average. The first `first`
    tokens are never merged. Sequences too short to merge that many from, at most 2 * `per_layer` + `first` + 1 tokens,
    stay as they are. Padding is expected behind the tokens.
    """

    scorer: Literal["info-degree"] = "info-degree"
    per_layer: int = 8
    alpha: float = 1.0
    first: int = 1

    name = "merge-tokens"
    stage = Stage.TOKENS
    effect = Effect.LOSSY
    paper = "Ju et al. 2023, Turbo, arXiv:2312.07408; Bolya et al. 2022, ToMe, arXiv:2210.09461"
    measure = "cosine of embeddings"

    def __post_init__(self) -> None:
        if self.per_layer < 0 or self.first < 0:
            raise ValueError("per_layer and first must not be negative")

    def run(self, program: Program, ctx: Context) -> Report:
        graph = program.graphs.get("forward")
        if graph is None or len(program.graphs) > 1:
            return Report(note="it is for encoders, programs whose only graph is forward")
        if self.per_layer == 0:
            return Report(note="per_layer=0 merges nothing")
        try:
            merging = _Merging(self, graph, program)
            program.graphs[graph.name] = merging.run(ctx.fuel)
            return Report(merging.sites)
        except NotShortened as error:
            return Report(near_misses=[NearMiss(graph.name, error.loc, error.reason)])
        except TypeRuleError as error:
            reason = f"a node cannot take fewer tokens: {error}"
            return Report(near_misses=[NearMiss(graph.name, Loc(), reason)])

    @property
    def least(self) -> int:
        """Sequences of at most that many tokens stay as they are."""
        return 2 * self.per_layer + self.first + 1


@dataclass
class _Sizes:
    """The tokens of the moment: how many each stands for, what attention to them needs, where the given ones are."""

    sizes: Value
    slots: Value | None = None
    mask: Value | None = None
    bias: Value | None = None


@dataclass
class _Merging:
    """The merging of one graph; the graph stays as it is."""

    options: MergeTokens
    graph: Graph
    program: Program
    sites: list[Site] = field(default_factory=list)

    def run(self, fuel: Fuel) -> Graph:
        units = _chain(self.graph)
        length = token_axis(units[0].start)
        attentions = {_attention(unit): unit for unit in units if unit.kind == "attention"}
        self.masks = [_checked(node, length, self.options.alpha) for node in attentions]
        places = {_producer(unit.end): node for node, unit in attentions.items() if unit.end is not units[-1].end}
        lengths = self._lengths(length, len(places))
        self.made = Shortened(self.graph, length, self.options.name)
        self.state: _Sizes | None = None
        for node in self.graph.nodes:
            self._copy(node, node in attentions)
            if node in places and fuel.take():
                self._merge(node, places[node], lengths[len(self.sites)])
            if node is _producer(units[-1].end):
                self._restore(node)
        result = self.made.finish()
        erase_unused(result, list(result.reversed_nodes))
        return result

    def _lengths(self, length: SymDim, count: int) -> list[Dim]:
        """How many tokens there are after each of `count` mergings. Raises NotShortened."""
        least, step = self.options.least, self.options.per_layer
        sizes = self.program.sizes.get(str(length), Range())
        if sizes.high is not None and sizes.high <= least:
            raise NotShortened(f"{length} is at most {sizes.high}, too few to merge {step} a layer", Loc())
        if sizes.low - step * (count - 1) >= least:
            return [length - step * (i + 1) for i in range(count)]
        return [maximum(length - step * (i + 1), minimum(length, least)) for i in range(count)]

    def _copy(self, node: Node, attends: bool) -> None:
        if not attends or self.state is None:
            self.made.copy(node)
            return
        q, k, v = (self._operand(node, name) for name in ("q", "k", "v"))
        operands = [q, k, v, self.state.mask, self.state.bias, self._operand(node, "sinks")]
        loc, names = node.loc.touched(self.options.name), [node.output.name]
        self.made.replaced(node, self.made.made.add(node.op, operands, node.attrs, loc=loc, names=names))

    def _merge(self, node: Node, attention: Node, left: Dim) -> None:
        b = self.made.builder(node)
        state = self.state or self._start(b, node.output)
        stream, keys = self.made.value(node.output), self._operand(attention, "k")
        received = self._received(b, attention, state) if self.options.alpha else None
        count = self.made.current - left
        how = {"alpha": self.options.alpha, "first": self.options.first} if received else {"first": self.options.first}
        gone, into, slots = b.many("match_tokens", keys, state.sizes, received, count=count, **how)
        merged, sizes = b.many("merge_tokens", stream, state.sizes, gone, into)
        self.state = self._next(b, state, sizes, slots)
        self.sites.append(
            Site(self.graph.name, node.loc, f"up to {self.options.per_layer} tokens merged into their like")
        )
        self.made.shorten(node.output, merged, left)

    def _start(self, b: Builder, stream: Value) -> _Sizes:
        """Every token stands for itself, and padding for nothing."""
        batch, length = stream.shape[:2]
        mask = next((mask for mask in self.masks if mask is not None), None)
        if mask is None:
            return _Sizes(b("full", shape=(batch, length), value=1.0, dtype="f32"))
        seen = b("reshape", self.made.value(mask), shape=(batch, length))
        return _Sizes(b("cast", seen, dtype="f32"))

    def _next(self, b: Builder, before: _Sizes, sizes: Value, slots: Value) -> _Sizes:
        batch, length = sizes.shape
        column = (batch, 1, 1, length)
        padded = any(mask is not None for mask in self.masks)
        mask = b("reshape", b("gt", sizes, 0.0), shape=column) if padded else None
        bias = b("reshape", b("log", b("maximum", sizes, _SMALLEST) if padded else sizes), shape=column)
        where = slots if before.slots is None else b("gather_tokens", slots, before.slots)
        return _Sizes(sizes, where, mask, bias)

    def _received(self, b: Builder, attention: Node, state: _Sizes) -> Value:
        """The attention each token gets, f32[B, S]: from the first token, or from all on average."""
        q, k, v = (self._operand(attention, name) for name in ("q", "k", "v"))
        rows = b("slice", q, axis=2, stop=1) if self.options.first else q
        mask = state.mask if state.bias is not None else self._operand(attention, "mask")
        how = {"scale": attention.attr("scale")}
        _, lse = b.many("attention_lse", rows, k, v, mask, state.bias, self._operand(attention, "sinks"), **how)
        share, _ = b.many("attention_stats", rows, k, lse, group="mean", **how)
        share = b("mean", share, axes=(1,))
        share = share if self.options.first else b("div", share, self.made.current)
        return b("mul", share, state.sizes)

    def _operand(self, node: Node, name: str) -> Value | None:
        value = node.operand(name)
        return None if value is None else self.made.value(value)

    def _restore(self, node: Node) -> None:
        if self.state is not None and self.state.slots is not None:
            b = self.made.builder(node)
            whole = b("gather_tokens", self.made.value(node.output), self.state.slots)
            self.made.restore(node.output, whole)


def _chain(graph: Graph) -> list[Unit]:
    """The units of the one stack of blocks of the graph. Raises NotShortened."""
    found = find_blocks(graph)
    units = list(found.units)
    if not units:
        node, reason = next(iter(found.reasons), (None, "no blocks are recognised"))
        raise NotShortened(reason, node.loc if node is not None else Loc())
    for before, unit in pairwise(units):
        if unit.start is not before.end and unit.end is not before.end:
            raise NotShortened("the blocks are no single chain", _producer(unit.end).loc)
    return units


def _attention(unit: Unit) -> Node:
    assert unit.attention is not None, "an attention unit attends"
    return unit.attention


def _producer(value: Value) -> Node:
    assert value.producer is not None, "a unit ends in a node"
    return value.producer


def _checked(node: Node, length: SymDim, alpha: float) -> Value | None:
    """The mask of an attention node that may have fewer tokens. Raises NotShortened with what forbids it."""
    mask = node.operand("mask")
    q, k = node.inputs[:2]
    assert q is not None and k is not None, "attention has queries and keys"
    column = (q.shape[0], 1, 1, length)
    reasons: Sequence[tuple[bool, str]] = (
        (node.op.name != "attention", f"{node.op.qualified()} has its own rules about keys"),
        (bool(node.attr("causal")), "the attention is causal: merged tokens have no place in the order"),
        (node.attr("window") is not None, "the attention has a window: merged tokens have no place in the order"),
        (node.operand("bias") is not None, "the attention has a bias for each pair of tokens"),
        (alpha != 0 and node.attr("softcap") is not None, "the attention caps its logits: use alpha=0"),
        (q.shape[2] != length or k.shape[2] != length, f"the attention is not of the stream's {length} tokens alone"),
        (mask is not None and mask.shape != column, "the mask is not one of padding alone"),
    )
    for fails, reason in reasons:
        if fails:
            raise NotShortened(reason, node.loc)
    return mask
