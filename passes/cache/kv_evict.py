"""kv-evict: after a prompt every layer and head keeps the keys and values of the tokens that matter most.

Before:

    graph @prefill(%ids: i64[B, S], %pos: i64[B, S], %kv0: kv<heads=3, dim=64, dense, f32>, ...) -> (...) {
      ...
      %kv = irx.kv_append(%kv0, %k, %v, %pos) : kv<heads=3, dim=64, dense, f32>
      %y = irx.kv_attention(%q, %kv, %pos) {scale=0.125} : f32[B, 9, S, 64]

After, with keep=0.2:

    graph @prefill(%ids: i64[B, S], %pos: i64[B, S], %kv0: kv<heads=3, dim=64, dense, f32, kept=0.2>, ...) -> (...) {
      ...
      %kv = irx.kv_append(%kv0, %k, %v, %pos) : kv<heads=3, dim=64, dense, f32, kept=0.2>
      %y = irx.kv_attention(%q, %kv, %pos) {scale=0.125} : f32[B, 9, S, 64]
      %left = irx.kv_keep(%kv, %q, %pos) {by="attention", share=0.2, keep=36, first=4, recent=32, rows=32, pool=5,
                                          scale=0.125} : kv<heads=3, dim=64, dense, f32, kept=0.2>

A prompt attends to all of itself; what is decoded behind it sees what is left. Every call of more than one token is a
prompt: after it each head holds ceil(keep * length) tokens of all that there were so far, older ones that stayed among
them, so a prompt in chunks is reduced chunk by chunk. `forward` and the nodes of `decode` stay as they are: what
eviction costs shows in what is decoded after a long prompt, and is measured there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from irx.ir.graph import Builder, Graph, Loc, Node, Value
from irx.ir.opdef import Attr
from irx.ir.program import Program
from irx.ir.types import KVType
from irx.passes.cache.budgets import NotMeasured, prefix_shares
from irx.passes.cache.versions import fused, retype, states_of, users, versions
from irx.pipeline.base import Context, Effect, NearMiss, Pass, Report, Site, Stage

_BY = {"snapkv": "attention", "h2o": "attention", "norm": "norm", "window": "age"}


@dataclass(frozen=True)
class KvEvict(Pass):
    """After each prompt keep ceil(`keep` * length) tokens per layer and KV head, or `capacity` of them.

    `scorer` snapkv: what the last `window` tokens pay a token, averaged over `pool` (5) neighbours; h2o: what all
    tokens of the prompt pay it, half of what stays being the newest; norm: minus the length of its key; window: the
    newest. The first `sinks` tokens always stay, and but for h2o the last `window`. `budget` prefix shares the tokens
    out among layers, so that the same part of the attention on the data is kept everywhere; it needs data=.
    """

    scorer: Literal["snapkv", "h2o", "norm", "window"] = "snapkv"
    keep: float = 0.2
    capacity: int | None = None
    budget: Literal["uniform", "prefix"] = "uniform"
    sinks: int = 4
    window: int = 32
    pool: int | None = None
    when: Literal["prefill"] = "prefill"

    name = "kv-evict"
    stage = Stage.CACHE
    effect = Effect.LOSSY
    conflicts = ("kv-ring",)
    paper = (
        "snapkv: Li et al. 2024, arXiv:2404.14469; h2o: Zhang et al. 2023, arXiv:2306.14048; "
        "norm: Devoto et al. 2024, arXiv:2406.11430; prefix: Wang et al. 2024, PrefixKV, arXiv:2412.03409"
    )
    measure = "mean KL of a continuation under teacher forcing, decoded after a long prompt; needle recall"

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep is {self.keep}, but must be above 0 and at most 1")
        if self.sinks < 0 or self.window < 1:
            raise ValueError(f"sinks is {self.sinks} and window {self.window}, but must be at least 0 and 1")
        if self.capacity is not None and self.capacity < self.protected:
            raise ValueError(f"capacity is {self.capacity}, but must be at least {self.protected}, which always stay")
        if self.width % 2 == 0 or self.width < 1:
            raise ValueError(f"pool is {self.width}, but must be odd")

    @property
    def protected(self) -> int:
        """How many tokens stay in any case."""
        return max(2 * self.sinks, 2) if self.scorer == "h2o" else self.sinks + self.window

    @property
    def width(self) -> int:
        """How many neighbours' scores are averaged."""
        return self.pool if self.pool is not None else 5 if self.scorer == "snapkv" else 1

    def run(self, program: Program, ctx: Context) -> Report:
        graph = program.graphs.get("prefill")
        if graph is None or not states_of(graph):
            return Report(note="there is no cache")
        if self.keep == 1 and self.capacity is None:
            return Report(note="keep=1 keeps all tokens")
        report, sites = Report(), []
        for state in states_of(graph):
            found = _attending(program, graph, state)
            if isinstance(found, NearMiss):
                report.near_misses.append(found)
            else:
                sites.append(_Place(state, found))
        try:
            shares = self._shares(program, ctx, [place.reader for place in sites])
        except NotMeasured as error:
            report.near_misses.append(NearMiss(graph.name, error.loc, error.reason))
            return report
        for place, factor in zip(sites, shares, strict=True):
            if ctx.fuel.take():
                report.sites.append(self._evict(program, graph, place, factor))
        return report

    def _shares(self, program: Program, ctx: Context, readers: list[Node]) -> list[float]:
        """How much each layer gets of what all would get in equal parts."""
        if self.budget == "uniform" or not readers:
            return [1.0] * len(readers)
        return prefix_shares(program, ctx.calibrated("kv-evict with budget=prefix"), readers, self._mean_share(ctx))

    def _mean_share(self, ctx: Context) -> float:
        return self.keep if self.capacity is None else min(1.0, self.capacity / ctx.max_length)

    def _evict(self, program: Program, graph: Graph, place: _Place, factor: float) -> Site:
        share = min(1.0, round(self.keep * factor, 4))
        if self.capacity is None:
            size: dict[str, Attr] = {"share": share, "keep": self.protected}
            said = f"{share:.3g} of the tokens of a prompt stay"
        else:
            count = max(self.protected, round(self.capacity * factor))
            size, said = {"keep": count}, f"{count} tokens of a prompt stay"
        retype(program, place.state.name, lambda kv: replace(kv, kept=self._kept(kv, share)))
        last = list(versions(graph, place.state))[-1]
        build = Builder(graph, _behind(graph, place.state), place.reader.loc.touched(self.name))
        left = build("kv_keep", last, *self._operands(place.reader), **size, **self._attributes(place.reader))
        pairs = zip(graph.output_names, graph.outputs, strict=True)
        graph.set_outputs({name: left if value is last else value for name, value in pairs})
        return Site(graph.name, place.reader.loc, said)

    def _kept(self, kv: KVType, share: float) -> float:
        """The share that a state holds in the end, of which others may have taken some already."""
        return min(kv.kept or 1.0, share if self.capacity is None else 1.0)

    def _operands(self, reader: Node) -> tuple[Value | None, ...]:
        """Queries, their positions and sinks, where attention is the score."""
        if _BY[self.scorer] != "attention":
            return ()
        sinks = reader.operand("sinks")
        return (reader.operand("q"), reader.operand("pos"), *((sinks,) if sinks is not None else ()))

    def _attributes(self, reader: Node) -> dict[str, Attr]:
        found: dict[str, Attr] = {"by": _BY[self.scorer], "first": self.sinks}
        found |= {"half": 0.5} if self.scorer == "h2o" else {"recent": self.window}
        found |= {"rows": self.window} if self.scorer == "snapkv" else {}
        found |= {"pool": self.width} if self.width > 1 else {}
        if found["by"] == "attention":
            found["scale"] = reader.attr("scale")
            found |= {"softcap": reader.attr("softcap")} if reader.attr("softcap") is not None else {}
        return found


@dataclass(frozen=True)
class _Place:
    """A state of `prefill` and the attention whose queries score its tokens."""

    state: Value
    reader: Node = field(hash=False)


def _attending(program: Program, graph: Graph, state: Value) -> Node | NearMiss:
    """The first attention to a state, or why its tokens cannot go."""
    found = [node for node in users(graph, state) if node.op.name == "kv_attention"]
    place = found[0].loc if found else Loc()
    reason = _obstacle(program, graph, state, found)
    return found[0] if reason is None else NearMiss(graph.name, place, reason)


def _obstacle(program: Program, graph: Graph, state: Value, readers: list[Node]) -> str | None:
    """The first reason why a state keeps all its tokens."""
    kv = state.type
    assert isinstance(kv, KVType)
    appended = any(node.op.name == "kv_append" for node in users(graph, state))
    others = [g for g in program.graphs.values() if any(v.name == state.name for v in states_of(g))]
    read = any(fused(g, v) for g in others for v in states_of(g) if v.name == state.name)
    reasons = (
        (read, f"%{state.name} is read in a fused region: tokens are chosen before"),
        (kv.page is not None, f"%{state.name} lies in pages, which are given back from the end only"),
        (not readers or not appended, f"nothing attends to what is appended to %{state.name}"),
        (any(n.op.name == "kv_keep" for n in users(graph, state)), f"%{state.name} loses tokens already"),
        (kv.heads != kv.value_heads, f"{kv.heads} heads of keys, but {kv.value_heads} of values"),
        (kv.code is not None and not kv.code.startswith("token"), f"codes of {kv.code} are no single tokens"),
        (any(not node.attr("causal") for node in readers), "the attention is not causal"),
        (any(node.attr("window") is not None for node in readers), "the attention sees a window only: see kv-ring"),
        (any(node.operand("table") is not None for node in readers), "the attention has a table of biases"),
    )
    return next((reason for fails, reason in reasons if fails), None)


def _behind(graph: Graph, state: Value) -> Node | None:
    """The node behind all that read a state; None for the end of the graph."""
    nodes = list(graph.nodes)
    place = nodes.index(users(graph, state)[-1]) + 1
    return nodes[place] if place < len(nodes) else None
