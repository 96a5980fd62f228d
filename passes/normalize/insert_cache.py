"""insert-cache: from `forward` to `prefill` and `decode`, which keep keys and values of earlier tokens in states.

Before:

    graph @forward(%ids: i64[B, S]) -> (logits: f32[B, S, 256]) {
      ...
      %p = irx.reshape(%i) {shape=[1, S]} : i64[1, S]                  // positions: 0, 1, ...
      %r = irx.rope(%q, %p, $inv_freq) : f32[B, 8, S, 64]
      %y = irx.attention(%r, %k, %v) {scale=0.125, causal=true} : f32[B, 8, S, 64]

After, beside `forward`:

    graph @prefill(%ids: i64[B, S], %pos: i64[B, S], %kv0: kv<heads=2, dim=64, dense, f32>) -> (logits: ..., kv0: ...) {
      ...
      %p = irx.maximum(%pos, 0) : i64[B, S]
      %r = irx.rope(%q, %p, $inv_freq) : f32[B, 8, S, 64]
      %kv = irx.kv_append(%kv0, %k, %v, %pos) : kv<heads=2, dim=64, dense, f32>
      %y = irx.kv_attention(%r, %kv, %pos) {scale=0.125} : f32[B, 8, S, 64]

`decode` is the same graph for one token. Every row of the batch has its own positions, -1 for padding, so that rows of
different lengths live in one batch; an attention mask that only says what is padding is gone. In an encoder-decoder
model everything that does not depend on the decoder's tokens becomes `encode`, and its results inputs of the others.

A program that cannot be converted, or whose conversion fails its check, keeps only `forward`, and the reason is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from irx.analysis.values import Prober, ValueFree
from irx.errors import TypeRuleError, UnboundWeight
from irx.ir.dims import Range
from irx.ir.graph import Builder, Graph, Loc, Node, Value
from irx.ir.program import Program
from irx.ir.weights import Weights
from irx.passes.normalize.caching.check import CacheCheck, site_error
from irx.passes.normalize.caching.frontier import Frontier
from irx.passes.normalize.caching.padding import count_all_tokens
from irx.passes.normalize.caching.rebuild import Rebuild
from irx.passes.normalize.caching.refusal import NotCacheable
from irx.passes.normalize.caching.roles import Roles, find_roles
from irx.passes.normalize.caching.substitute import substituted
from irx.passes.normalize.caching.tokenwise import mixing_nodes
from irx.passes.normalize.classify_masks import classify_masks
from irx.pipeline.base import Context, Effect, NearMiss, Pass, Report, Site, Stage
from irx.rewrite.cleanup import erase_unused


@dataclass(frozen=True)
class InsertCache(Pass):
    """Make `prefill` and `decode` with a KV cache from a causal `forward`, and `encode` where there is an encoder."""

    name = "insert-cache"
    stage = Stage.NORMALIZE
    effect = Effect.EXACT

    def run(self, program: Program, ctx: Context) -> Report:
        forward = program.graphs.get("forward")
        if forward is None or "prefill" in program.graphs:
            return Report(note="there is no forward, or it has a cache already")
        if not any(_may_be_causal(node) for node in forward.nodes):
            return Report(note="there is no causal attention")
        if not ctx.fuel.take():
            return Report(note="no fuel is left")
        try:
            return _Conversion(program, ctx, forward).run()
        except NotCacheable as error:
            return Report(near_misses=[NearMiss("forward", error.loc, error.reason)])
        except UnboundWeight as error:
            return Report(near_misses=[NearMiss("forward", Loc(), f"{error.what}, and positions depend on it")])


@dataclass
class _Conversion:
    """The conversion of one program; the program is changed only once everything has been checked."""

    program: Program
    ctx: Context
    forward: Graph

    def run(self) -> Report:
        weights = self.program.weights.copy()
        source, roles = self._unpadded()
        classify_masks(source, self.program, self.ctx)
        if not any(_may_be_causal(node) for node in source.nodes):
            return Report(note="there is no causal attention")
        made = self._rebuild(source, roles, weights)
        encode, prefill = made.encode(), made.prefill
        decode = self._decode(prefill, roles)
        errors = self._check(made, roles, encode, decode)
        self.program.weights = weights
        self.program.graphs |= ({"encode": encode} if encode else {}) | {"prefill": prefill, "decode": decode}
        self.program.meta |= self._meta(made, roles, encode)
        sites = [Site("forward", s.node.loc, str(s.type), errors.get(s.signature, errors.get(""))) for s in made.sites]
        ids = ", ".join(map(str, roles.padding))
        return Report(sites, note=f"positions do not leave out the id {ids}, as forward does" if ids else "")

    def _unpadded(self) -> tuple[Graph, Roles]:
        """A copy of `forward` that gives the logits only, of unpadded tokens: masks of ones, positions from 0."""
        source = self.forward.clone()
        roles = find_roles(source, self.program.meta)
        logits = dict(zip(source.output_names, source.outputs, strict=True))[roles.logits]
        source.set_outputs({roles.logits: logits})
        b = Builder(source, before=next(source.nodes))
        for mask in roles.masks:
            ones: Any = True if mask.dtype == "bool" else 1
            source.replace(mask, b("full", shape=mask.shape, value=ones, dtype=mask.dtype))
            source.inputs.remove(mask)
        for given in roles.positions:
            counted = b("arange", stop=roles.length, dtype=given.dtype)
            source.replace(given, b("expand", b("reshape", counted, shape=(1, roles.length)), shape=given.shape))
            source.inputs.remove(given)
        padding = count_all_tokens(source, roles.tokens)
        erase_unused(source, list(source.reversed_nodes))
        return source, replace(roles, padding=tuple(padding))

    def _rebuild(self, source: Graph, roles: Roles, weights: Weights) -> Rebuild:
        free, prober = ValueFree(), Prober(weights, self.ctx.evaluate)
        sizes = self.program.sizes
        high = sizes.get(str(roles.length), Range()).high
        longest = self.ctx.max_length if high is None else min(high, self.ctx.max_length)
        frontier = Frontier(prober, free, roles.batch, roles.length, sizes, longest)
        made = Rebuild(source, roles, frontier, weights, free)
        made.run()
        return made

    def _decode(self, prefill: Graph, roles: Roles) -> Graph:
        try:
            return substituted(prefill, {str(roles.length): 1}, "decode")
        except TypeRuleError as error:
            raise NotCacheable(f"for one token: {error}") from error

    def _check(self, made: Rebuild, roles: Roles, encode: Graph | None, decode: Graph) -> dict[str, float]:
        """The error by signature of the site, or of the whole under the empty one. Raises NotCacheable."""
        graphs = (self.forward, made.stored(), encode, made.prefill, decode)
        check = CacheCheck(self.ctx.evaluate, made.weights, self.program.sizes, roles, *graphs)
        mixing = mixing_nodes(made.prefill, roles.batch, roles.length)
        whole = check.whole(made.frontier.longest)
        if whole is None and mixing:
            node, reason = mixing[0]
            raise NotCacheable(f"{reason}, and the program is too large or too little known to be compared", node)
        errors = {"": whole} if whole is not None else dict(self._site_errors(made))
        limit = next(n.op.tolerance for n in self.forward.nodes if n.op.name == "attention").of(_logits(made).dtype)
        worst = max(errors.values(), default=0.0)
        if not worst <= limit:
            place, reason = mixing[0] if mixing else (Loc(), "the check failed")
            raise NotCacheable(f"{reason}: cached logits differ by {worst:.1e}, above {limit:.0e}", place)
        return errors

    def _site_errors(self, made: Rebuild) -> Iterator[tuple[str, float]]:
        for site in {site.signature: site for site in made.sites}.values():
            yield site.signature, site_error(site, made.frontier, made.weights, self.ctx.evaluate)

    def _meta(self, made: Rebuild, roles: Roles, encode: Graph | None) -> dict[str, Any]:
        return {
            "cache": [{"state": site.state, "module": site.node.loc.module} for site in made.sites],
            "ids": roles.tokens.name,
            "logits": roles.logits,
            "max_length": made.frontier.longest,
            "encoder_inputs": [v.name for v in encode.inputs] if encode else [],
            "encoder_outputs": list(encode.output_names) if encode else [],
        }


def _may_be_causal(node: Node) -> bool:
    """True for attention that is causal, or that hides keys in a way that is not known."""
    if node.op.name != "attention":
        return False
    return bool(node.attr("causal")) or node.operand("mask") is not None or node.operand("bias") is not None


def _logits(made: Rebuild) -> Value:
    return made.prefill.outputs[0]
