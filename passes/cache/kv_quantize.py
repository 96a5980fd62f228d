"""kv-quantize: keys and values are stored as codes of 8, 4 or 2 bits.

Before:

    graph @forward(%x: f32[B, 2, S, 64]) -> (...) {
      %y = irx.attention(%x, %x, %x) {scale=0.125, causal=true} : f32[B, 2, S, 64]
    graph @decode(%x: f32[B, 2, 1, 64], %pos: i64[B, 1], %kv0: kv<heads=2, dim=64, dense, f32>) -> (...) {
      %kv = irx.kv_append(%kv0, %x, %x, %pos) : kv<heads=2, dim=64, dense, f32>

After, with bits=4:

    graph @forward(%x: f32[B, 2, S, 64]) -> (...) {
      %r = irx.round_tokens(%x) {code="token4"} : f32[B, 2, S, 64]
      %y = irx.attention(%x, %r, %r) {scale=0.125, causal=true} : f32[B, 2, S, 64]
    graph @decode(%x: f32[B, 2, 1, 64], %pos: i64[B, 1], %kv0: kv<heads=2, dim=64, dense, f32, code=token4>) -> (...) {
      %kv = irx.kv_append(%kv0, %x, %x, %pos) : kv<heads=2, dim=64, dense, f32, code=token4>

Tokens become codes when they are appended, those of the prompt too, so what attention sees does not depend on how a
prompt was divided; `forward`, which has no cache, rounds its keys and values alike.

With scheme=kivi, bits=2 the code is kivi2-32-128, and attention in `forward` becomes what sees old tokens as codes:

      %y = irx.coded_attention(%x, %x, %x) {code="kivi2-32-128", scale=0.125} : f32[B, 2, S, 64]

What a query sees as codes depends on its position alone, in a prompt as in a step: keys before the last multiple of
128, values more than 127 tokens back.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from irx.ir.codes import TailedCode, tailed
from irx.ir.graph import Builder, Graph, Loc, Node, Value
from irx.ir.program import Program
from irx.ir.types import KVType, is_float
from irx.passes.cache.versions import counterparts, fused, retype, states_of, users
from irx.pipeline.base import Context, Effect, NearMiss, Pass, Report, Site, Stage
from irx.rewrite.report import Fuel

FULL = 16
_BITS = {"token": (8, 4), "kivi": (4, 2)}


@dataclass(frozen=True)
class KvQuantize(Pass):
    """Store keys and values in few bits, with float16 steps and lowest values.

    `token` (8 or 4 bits): one step for every token and head. `kivi` (4 or 2 bits): one for each channel of `group` keys
    and for `group` channels of each value, and the newest tokens, up to `tail`, as they are. `bits` 16 leaves the cache
    as it is.
    """

    scheme: Literal["token", "kivi"] = "token"
    bits: int = 8
    group: int = 32
    tail: int = 128

    name = "kv-quantize"
    stage = Stage.CACHE
    effect = Effect.LOSSY
    paper = "Lin et al. 2024, QServe, arXiv:2405.04532; Liu et al. 2024, KIVI, arXiv:2402.02750"
    measure = "mean KL of next-token distributions under teacher forcing"

    def __post_init__(self) -> None:
        allowed = _BITS[self.scheme]
        if self.bits not in (*allowed, FULL):
            raise ValueError(f"bits is {self.bits}, but with scheme={self.scheme} must be in {(*allowed, FULL)}")
        if self.scheme == "kivi" and tailed(f"kivi{allowed[0]}-{self.group}-{self.tail}") is None:
            raise ValueError(f"a tail of {self.tail} tokens is no whole groups of {self.group}")

    @property
    def code(self) -> str:
        """The word of a KV type."""
        if self.scheme == "token":
            return f"token{self.bits}"
        return str(TailedCode(self.bits, self.group, self.tail))

    def run(self, program: Program, ctx: Context) -> Report:
        if self.bits == FULL:
            return Report(note=f"bits={FULL} keeps keys and values as they are")
        states = list(dict.fromkeys(v.name for graph in program.graphs.values() for v in states_of(graph)))
        if not states:
            return Report(note="there is no cache")
        change = _Change(program, self.name, self.code, ctx.fuel)
        for name in states:
            change.state(name)
        return change.report


@dataclass
class _Change:
    """Gives states codes, one after the other, in all graphs."""

    program: Program
    by: str
    code: str
    fuel: Fuel
    report: Report = field(default_factory=Report)
    _rounded: dict[Value, Value] = field(default_factory=dict)

    def state(self, name: str) -> None:
        """Change the state of a name, or say why not."""
        found = [(graph, v) for graph in self.program.graphs.values() for v in states_of(graph) if v.name == name]
        graph, state = found[0]
        readers = [node for node in users(graph, state) if node.op.name == "kv_attention"]
        place = readers[0].loc if readers else Loc()
        reason = next((reason for g, v in found if (reason := _obstacle(g, v, self.code)) is not None), None)
        forward = self.program.graphs.get("forward")
        same = [] if forward is None or states_of(forward) else counterparts(graph, readers, forward)
        if reason is None and tailed(self.code) is not None and name in self.program.meta.get("partial", ()):
            reason = f"%{name} gets some tokens of a prompt only, and groups of tokens cannot have gaps"
        if reason is None and same is None:
            reason = f"the attention to %{name} has no counterpart in @forward"
        if reason is not None:
            self.report.near_misses.append(NearMiss(graph.name, place, reason))
            return
        if not self.fuel.take():
            return
        retype(self.program, name, lambda kv: replace(kv, code=self.code))
        for node in same or ():
            assert forward is not None
            self._round(forward, node)
        self.report.sites.append(Site(graph.name, place, f"keys and values as {self.code}"))

    def _round(self, graph: Graph, node: Node) -> None:
        """Let attention without a cache see keys and values as codes."""
        if tailed(self.code) is not None:
            attrs = {name: value for name, value in node.attrs.items() if name != "causal"}
            build = Builder(graph, node, node.loc.touched(self.by))
            graph.replace(node.output, build("coded_attention", *node.inputs, code=self.code, **attrs))
            graph.erase(node)
            return
        inputs = list(node.inputs)
        for index in (1, 2):
            value = inputs[index]
            assert value is not None
            if value not in self._rounded:
                build = Builder(graph, node, node.loc.touched(self.by))
                self._rounded[value] = build("round_tokens", value, code=self.code)
            inputs[index] = self._rounded[value]
        graph.set_inputs(node, inputs)


def _obstacle(graph: Graph, state: Value, code: str) -> str | None:
    """The first reason why a state stays as it is."""
    kv = state.type
    assert isinstance(kv, KVType)
    if kv.code is not None or not is_float(kv.dtype):
        return f"%{state.name} is stored as {kv.storage} already"
    if fused(graph, state):
        return f"%{state.name} is read in a fused region: codes are chosen before"
    found = tailed(code)
    return None if found is None else _torn(graph, state, kv, found)


def _torn(graph: Graph, state: Value, kv: KVType, code: TailedCode) -> str | None:
    """Why a state cannot be coded in groups."""
    if kv.v_dim % code.group:
        return f"values of {kv.v_dim} channels are no whole groups of {code.group}"
    if kv.capacity is not None or kv.kept is not None or kv.window is not None:
        return f"%{state.name} keeps some tokens only: groups of tokens cannot be torn apart"
    if kv.page is not None:
        return f"%{state.name} lies in pages, and groups of tokens behind a tail do not"
    if kv.prefix:
        return f"%{state.name} shares prefixes, into which a tail would slide"
    for node in users(graph, state):
        if node.op.name not in ("kv_append", "kv_attention"):
            return f"{node.op.name} chooses among the tokens of %{state.name}, which groups cannot be torn apart for"
        if node.op.name == "kv_attention" and not node.attr("causal"):
            return f"%{state.name} is attended to by queries without an order"
    return None
