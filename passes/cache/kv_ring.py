"""kv-ring: of what attention sees through a window, the cache holds no more than the window.

Before:

    graph @decode(%ids: i64[B, 1], %pos: i64[B, 1], %kv0: kv<heads=2, dim=64, dense, f32>, ...) -> (...) {
      %kv = irx.kv_append(%kv0, %k, %v, %pos) : kv<heads=2, dim=64, dense, f32>
      %y = irx.kv_attention(%q, %kv, %pos) {scale=0.125, window=512} : f32[B, 8, 1, 64]

After:

    graph @decode(%ids: i64[B, 1], %pos: i64[B, 1], %kv0: kv<heads=2, dim=64, dense, f32, window=512>, ...) -> (...) {
      %kv = irx.kv_append(%kv0, %k, %v, %pos) : kv<heads=2, dim=64, dense, f32, window=512>
      %y = irx.kv_attention(%q, %kv, %pos) {scale=0.125, window=512} : f32[B, 8, 1, 64]

So much is exact: a new token takes the place of one that nothing will see again. With a `window` of its own the pass
also gives it to attention without one, or with a larger one; then every graph changes alike, the first `sinks` tokens
stay seen (StreamingLLM), and `forward` shows what that costs:

      %seen = irx.or(%near, %first) : bool[S, S]                          // i - j < 256 or j < 4
      %y = irx.attention(%q, %k, %v, %seen) {scale=0.125, causal=true}
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from irx.ir.graph import Builder, Graph, Loc, Node, Value
from irx.ir.program import Program
from irx.ir.types import KVType
from irx.passes.cache.versions import counterparts, fused, retype, states_of, users
from irx.pipeline.base import Context, Effect, NearMiss, Pass, Report, Site, Stage


@dataclass(frozen=True)
class KvRing(Pass):
    """Keep the last `window` tokens and the first `sinks` of a sequence, and let attention see no others.

    Without a window those of the model are taken, which changes nothing but the cache; layers without one stay.
    """

    window: int | None = None
    sinks: int = 4

    name = "kv-ring"
    stage = Stage.CACHE
    effect = Effect.LOSSY
    conflicts = ("kv-evict",)
    paper = "Xiao et al. 2023, StreamingLLM, arXiv:2309.17453"
    measure = "mean KL of next-token distributions under teacher forcing"

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"window is {self.window}, but must be at least 1")
        if self.sinks < 0:
            raise ValueError(f"sinks is {self.sinks}, but must be at least 0")
        if self.window is None:  # nothing is forgotten that anything would read
            object.__setattr__(self, "effect", Effect.EXACT)

    def run(self, program: Program, ctx: Context) -> Report:
        graph = program.graphs.get("prefill")
        if graph is None or not states_of(graph):
            return Report(note="there is no cache")
        change = _Change(program, self)
        for state in states_of(graph):
            readers = [node for node in users(graph, state) if node.op.name == "kv_attention"]
            place = readers[0].loc if readers else Loc()
            reason = change.obstacle(graph, state, readers)
            if reason is not None:
                change.report.near_misses.append(NearMiss(graph.name, place, reason))
            elif ctx.fuel.take():
                change.report.sites.append(Site(graph.name, place, change.state(state, readers)))
        return change.report


@dataclass
class _Change:
    """Turns states into rings, one after the other, in all graphs."""

    program: Program
    options: KvRing
    report: Report = field(default_factory=Report)
    _masks: dict[Graph, Value] = field(default_factory=dict)

    def obstacle(self, graph: Graph, state: Value, readers: list[Node]) -> str | None:
        """The first reason why a state of `prefill` stays as it is."""
        kv = state.type
        assert isinstance(kv, KVType)
        read = any(fused(g, v) for g, v in self._everywhere(state))
        appended = any(node.op.name == "kv_append" for node in users(graph, state))
        windows = {node.attr("window") for node in readers}
        reasons = (
            (read, f"%{state.name} is read in a fused region: rings are made before"),
            (not readers or not appended, f"nothing attends to what is appended to %{state.name}"),
            (kv.page is not None, f"%{state.name} lies in pages: a window needs few slots, in one place"),
            (kv.kept is not None or kv.prefix, f"%{state.name} does not hold its tokens side by side"),
            (kv.window is not None, f"%{state.name} is a ring already"),
            (kv.heads != kv.value_heads, f"{kv.heads} heads of keys, but {kv.value_heads} of values"),
            (kv.code is not None and not kv.code.startswith("token"), f"codes of {kv.code} are no single tokens"),
            (any(not node.attr("causal") for node in readers), "the attention is not causal"),
            (any(node.operand("table") is not None for node in readers), "the attention has a table of biases"),
            (len(windows) != 1, f"its readers have different windows: {', '.join(map(str, windows))}"),
            (windows == {None} and self.options.window is None, "the attention has no window: give kv-ring one"),
            (self._narrows(windows) and self._plain(readers) is None, "its attention has no counterpart in @forward"),
        )
        return next((reason for fails, reason in reasons if fails), None)

    def state(self, state: Value, readers: list[Node]) -> str:
        """Make it a ring, and say which."""
        own, wanted = readers[0].attr("window"), self.options.window
        narrows = self._narrows({own})
        window = wanted if narrows else own
        assert isinstance(window, int), "there is a window"
        sinks = self.options.sinks if narrows else 0
        if narrows:
            for node in self._plain(readers) or []:
                self._narrow(self.program.graphs["forward"], node, window, sinks)
            for graph, value in self._everywhere(state):
                for node in users(graph, value):
                    if node.op.name == "kv_attention":
                        node.attrs |= {"window": window, "first": sinks} if sinks else {"window": window}
        retype(self.program, state.name, lambda kv: replace(kv, window=window, sinks=sinks))
        return f"the last {window} tokens stay" + (f", and the first {sinks}" if sinks else "")

    def _narrows(self, windows: Iterable[object]) -> bool:
        """True where attention is to see less than it does in the model."""
        wanted = self.options.window
        return wanted is not None and not any(isinstance(own, int) and own <= wanted for own in windows)

    def _everywhere(self, state: Value) -> list[tuple[Graph, Value]]:
        graphs = self.program.graphs.values()
        return [(graph, value) for graph in graphs for value in states_of(graph) if value.name == state.name]

    def _plain(self, readers: list[Node]) -> list[Node] | None:
        """The attention of `forward` that is that of these readers; None where it cannot be told."""
        forward = self.program.graphs.get("forward")
        if forward is None or states_of(forward):
            return []
        return counterparts(self.program.graphs["prefill"], readers, forward)

    def _narrow(self, graph: Graph, node: Node, window: int, sinks: int) -> None:
        """Let attention without a cache see the window, and the first tokens."""
        if not sinks:
            node.attrs["window"] = window
            return
        seen = self._masks.get(graph)
        if seen is None:
            seen = self._masks[graph] = self._seen(graph, node, window, sinks)
        build = Builder(graph, node, node.loc.touched(self.options.name))
        mask = node.operand("mask")
        seen = seen if mask is None else build("and", mask, seen)
        node.attrs.pop("window", None)
        graph.set_inputs(node, (*node.inputs[:3], seen, *node.inputs[4:]))

    def _seen(self, graph: Graph, node: Node, window: int, sinks: int) -> Value:
        """bool[S, S]: which keys a row sees, causality apart."""
        build = Builder(graph, node, node.loc.touched(self.options.name))
        query, key = node.inputs[0], node.inputs[1]
        assert query is not None and key is not None, "attention has queries and keys"
        rows, columns = query.shape[2], key.shape[2]
        i = build("reshape", build("arange", stop=rows), shape=(rows, 1))
        j = build("reshape", build("arange", stop=columns), shape=(1, columns))
        return build("or", build("lt", build("sub", i, j), window), build("lt", j, sinks))
