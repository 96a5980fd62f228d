"""share-attention: layers take keys and values, or queries and keys, from an earlier layer instead of their own.

Before:

    %k1 = irx.linear(%x1, $1.k)                                            // and q1, v1, and likewise of layer 2
    %y1 = irx.attention(%q1, %k1, %v1) {scale=0.125, causal=true}
    ...
    %y2 = irx.attention(%q2, %k2, %v2) {scale=0.125, causal=true}

After, with what=kv, where layer 2 follows layer 1:

    %y1 = irx.attention(%q1, %k1, %v1) {scale=0.125, causal=true}
    ...
    %y2 = irx.attention(%q2, %k1, %v1) {scale=0.125, causal=true}          // $2.k and $2.v are gone

and in `prefill` and `decode`

    %kv1 = irx.kv_append(%state1, %k1, %v1, %pos)
    %y1 = irx.kv_attention(%q1, %kv1, %pos) {scale=0.125}
    ...
    %y2 = irx.kv_attention(%q2, %kv1, %pos) {scale=0.125}                  // %state2 is gone

A group is a leader and the layers behind it that follow it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from irx.ir.graph import Graph, Node, Value
from irx.ir.program import Program
from irx.ir.types import KVType
from irx.passes.attention.similarity import Similarities, similarities
from irx.passes.attention.sites import AttentionSite, attention_sites, unlike
from irx.pipeline.base import Context, Effect, NearMiss, Pass, Report, Site, Stage
from irx.rewrite.cleanup import erase_unused

_SHARED = {"kv": ("k", "v"), "qk": ("q", "k")}
_WORDS = {"kv": "keys and values", "qk": "queries and keys"}


@dataclass(frozen=True)
class ShareAttention(Pass):
    """Let layers reuse what an earlier layer attends to; their projections, and with kv their cache, disappear.

    `what`: kv (a follower keeps its queries and reads the leader's keys and values) or qk (it weighs its own values as
    the leader does). `leader`: auto groups layers whose attention probabilities have a mean cosine of at least
    `threshold` on calibration data; previous groups whatever fits. At most `group` layers are one group. The first and
    last `ends` layers are left alone. `layers` limits who may follow to these layers, counted from 0.
    """

    what: Literal["kv", "qk", "probs"] = "kv"
    leader: Literal["auto", "previous"] = "auto"
    group: int = 2
    threshold: float = 0.9
    ends: int = 2
    layers: tuple[int, ...] | int = ()

    name = "share-attention"
    stage = Stage.ATTENTION
    effect = Effect.LOSSY
    paper = "EchoAtt, Rajabzadeh et al. 2024, arXiv:2409.14595; kv: CLA, Brandon et al. 2024, arXiv:2405.12981"
    measure = "mean KL of next-token distributions under teacher forcing; for encoders the cosine of embeddings"

    def __post_init__(self) -> None:
        if self.what == "probs":
            raise ValueError("what=probs: no op takes attention probabilities; qk computes the same from q and k")
        if self.group < 1 or self.ends < 0:
            raise ValueError(f"group is {self.group} and ends {self.ends}, but must be at least 1 and 0")

    def run(self, program: Program, ctx: Context) -> Report:
        sites, reason = attention_sites(program)
        if self.what == "qk" and any(site.cached for site in sites):
            reason = "what=qk needs a cache of values alone, which kv_attention cannot read beside another's keys"
        if reason:
            return Report(note=reason)
        inner = range(self.ends, len(sites) - self.ends)
        if len(inner) < 2 or self.group < 2:
            return Report(
                note=f"no groups of {self.group} among {len(inner)} layers between the ends ({len(sites)} in all)"
            )
        return _Sharing(self, program, ctx, sites, inner).run()

    def may_follow(self, layer: int) -> bool:
        """False for a layer that `layers` leaves out."""
        chosen = (self.layers,) if isinstance(self.layers, int) else self.layers
        return not chosen or layer in chosen


@dataclass
class _Sharing:
    options: ShareAttention
    program: Program
    ctx: Context
    sites: list[AttentionSite]
    inner: range
    report: Report = field(default_factory=Report)

    def run(self) -> Report:
        measured = self._similarities()
        group: list[int] = []
        for index in self.inner:
            joins = group and len(group) < self.options.group and self.options.may_follow(index)
            if joins and self._join(group[0], index, measured):
                group.append(index)
            else:
                group = [index]
        for graph in self.program.graphs.values():
            _drop_unread_states(graph)
        if not self.report.sites:
            self.report.note = "no groups: no layer may follow the one before it"
        return self.report

    def _similarities(self) -> Similarities:
        if self.options.leader == "previous":
            return {}
        data = self.ctx.calibrated("share-attention with leader=auto")
        return similarities(self.program, data, self.inner, self.options.group - 1)

    def _join(self, first: int, index: int, measured: Similarities) -> bool:
        """Let a layer follow the leader `first`; False, with the reason in the report, where it cannot."""
        leader, follower = self.sites[first], self.sites[index]
        cosine = measured.get((first, index))
        reason = unlike(leader, follower)
        if reason:
            reason = f"cannot follow {leader.name}: {reason}"
        elif cosine is not None and cosine < self.options.threshold:
            reason = f"attends unlike {leader.name}: cosine {cosine:.3f} is below {self.options.threshold:g}"
        elif not self.ctx.fuel.take():
            return False
        if reason:
            self.report.near_misses.append(NearMiss("forward", follower.node.loc, reason))
            return False
        self._follow(leader, follower, "" if cosine is None else f", cosine {cosine:.3f}")
        return True

    def _follow(self, leader: AttentionSite, follower: AttentionSite, measured: str) -> None:
        what = f"{_WORDS[self.options.what]} of {leader.name}{measured}"
        names = _SHARED[self.options.what]
        self._read(self.program.graphs["forward"], follower.node, {name: leader.operand(name) for name in names})
        self.report.sites.append(Site("forward", follower.node.loc, what))
        for name, node in follower.cached.items():
            self._read(self.program.graphs[name], node, {"kv": leader.state(name)})
            self.report.sites.append(Site(name, node.loc, what))
        self._tell(leader, follower)

    def _read(self, graph: Graph, node: Node, operands: dict[str, Value]) -> None:
        """Let a node read other operands, and remove what only made the old ones."""
        names = [declared.name for declared in node.op.operands]
        old = node.inputs
        graph.set_inputs(node, [operands.get(name, value) for name, value in zip(names, old, strict=False)])
        node.loc = node.loc.touched(self.options.name)
        erase_unused(graph, [value.producer for value in old if value is not None and value.producer is not None])

    def _tell(self, leader: AttentionSite, follower: AttentionSite) -> None:
        """Whose cache a layer reads is part of what is known about the program."""
        entries = self.program.meta.get("cache", [])
        states = {entry["module"]: entry["state"] for entry in entries}
        if leader.name in states:
            self._tell_partial(states[leader.name], states[follower.name])
            states[follower.name] = states[leader.name]
            self.program.meta["cache"] = [{"state": states[e["module"]], "module": e["module"]} for e in entries]

    def _tell_partial(self, leader: str, follower: str) -> None:
        """The slots that a layer with fewer tokens of a prompt than its leader reads must say their positions."""
        partial = self.program.meta.get("partial", [])
        if follower in partial:
            others = [name for name in partial if name not in (leader, follower)]
            self.program.meta["partial"] = sorted([*others, leader])


def _drop_unread_states(graph: Graph) -> None:
    """Remove states that are only written: their inputs, their results, and what made the tokens for them."""
    for state in [value for value in graph.inputs if isinstance(value.type, KVType)]:
        writers = graph.users(state)
        if not writers or any(node.op.name != "kv_append" or graph.users(node.output) for node in writers):
            continue
        written = {node.output for node in writers}
        kept = zip(graph.output_names, graph.outputs, strict=True)
        graph.set_outputs({name: value for name, value in kept if value not in written})
        graph.inputs.remove(state)
        erase_unused(graph, writers)
