"""prune-tokens: behind a layer `prefill` goes on with the tokens of the prompt that matter for what follows.

Before:

    graph @prefill(%ids: i64[B, S], %pos: i64[B, S], %rows: i64[B, R], ...) -> (logits: f32[B, R, 49152], ...) {
      ...
      %x = irx.add(%h, %m) : f32[B, S, 576]                                      // the end of layer 14
      ...
      %kv = irx.kv_append(%kv15, %k, %v, %pos) : kv<...>
      ...
      %t = irx.gather_tokens(%y, %rows) : f32[B, R, 576]

After, with keep=0.2, where S' is max(ceil(S / 5), min(S, R + 7)):

      %x = irx.add(%h, %m) : f32[B, S, 576]
      ...                                                                        // scores of layer 14's attention
      %index = irx.topk_tokens(%scores) {keep=S', last=0} : i64[B, S']
      %p = irx.gather_tokens(%x, %index) : f32[B, S', 576]
      %pos2 = irx.gather_tokens(%pos, %index) : i64[B, S']
      ...
      %kv = irx.kv_append(%kv15, %k, %v, %pos2) : kv<...>
      ...
      %t = irx.gather_tokens(%y, %rows2) : f32[B, R, 576]

The rows that logits are wanted of always stay, so a call that wants them all prunes nothing. Positions travel with the
tokens: angles, and what sees what, are as before. The caches of later layers hold fewer tokens; `decode` and `forward`
stay as they are. So `forward` does not tell what pruning costs: that shows in what is decoded after a long prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal

from irx.analysis.blocks import Block, find_blocks
from irx.errors import TypeRuleError
from irx.ir.dims import Dim, SymDim, maximum, minimum, names
from irx.ir.graph import Builder, Graph, Loc, Node, Value
from irx.ir.program import Program
from irx.ir.types import TensorType
from irx.passes.cache.versions import retype
from irx.passes.tokens.importance import Attending, importance
from irx.passes.tokens.shortening import NotShortened, Shortened, token_axis
from irx.pipeline.base import Context, Effect, NearMiss, Pass, Report, Site, Stage
from irx.rewrite.cleanup import erase_unused

_SURE = 1e30  # the score of a token that stays in any case, above all attention there is


@dataclass(frozen=True)
class PruneTokens(Pass):
    """Behind layer `layer` (counted from 0) keep ceil(`keep` * S) of the S tokens of a prompt.

    `scorer` window: the attention that the last `window` tokens pay a token, over all heads, averaged over `pool`
    neighbours; these tokens stay. last-query: the logits that the last token gives it, likewise. By default, layer is
    the last of the first half, pool 7 for window and 5 for last-query.
    """

    scorer: Literal["window", "last-query"] = "window"
    layer: int | None = None
    keep: float = 0.2
    window: int = 8
    pool: int | None = None

    name = "prune-tokens"
    stage = Stage.TOKENS
    effect = Effect.LOSSY
    paper = "window: Jo et al. 2025, FastKV, arXiv:2502.01068; last-query: Jin et al. 2025, PromptDistill"
    measure = "mean KL of a continuation under teacher forcing, decoded after a long prompt"

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep is {self.keep}, but must be above 0 and at most 1")
        if self.window < 1:
            raise ValueError(f"window is {self.window}, but must be at least 1")
        if self.width % 2 == 0 or self.width < 1:
            raise ValueError(f"pool is {self.width}, but must be odd")

    @property
    def width(self) -> int:
        """How many neighbours' scores are averaged."""
        return self.pool if self.pool is not None else 7 if self.scorer == "window" else 5

    @property
    def observers(self) -> int:
        """How many of the last tokens score the others."""
        return self.window if self.scorer == "window" else 1

    def run(self, program: Program, ctx: Context) -> Report:
        graph = program.graphs.get("prefill")
        if graph is None:
            return Report(note="there is no prefill")
        if self.keep == 1:
            return Report(note="keep=1 keeps all tokens")
        try:
            pruning = _Pruning(self, graph, program)
            result = pruning.run() if ctx.fuel.take() else graph
        except NotShortened as error:
            return Report(near_misses=[NearMiss(graph.name, error.loc, error.reason)])
        except TypeRuleError as error:
            return Report(near_misses=[NearMiss(graph.name, Loc(), f"a node cannot take fewer tokens: {error}")])
        program.graphs[graph.name] = result
        for name in pruning.states:
            retype(program, name, lambda kv: replace(kv, kept=self.keep))
        program.meta["partial"] = [*program.meta.get("partial", ()), *pruning.states]
        return Report(pruning.sites)


@dataclass
class _Kept(Shortened):
    """A copy whose values of all tokens are gathered where they meet those of the tokens that stay."""

    index: Value | None = None
    rows: Value | None = None
    """The input that names the rows wanted, and below what it says of the tokens that stay."""
    new_rows: Value | None = None
    _gathered: dict[Value, Value] = field(default_factory=dict)

    def fitted(self, value: Value, node: Node) -> Value:
        whole = self.value(value)
        if value is self.rows and self.new_rows is not None:
            if node.op.name != "gather_tokens":
                raise NotShortened(f"{node.op.qualified()} reads the rows that are wanted", node.loc)
            return self.new_rows
        if not isinstance(value.type, TensorType) or not any(str(self.length) in names(d) for d in value.shape):
            return whole
        assert self.index is not None, "tokens stay only once they are chosen"
        if len(value.shape) < 2 or value.shape[:2] != (self.index.shape[0], self.length):
            raise NotShortened(f"%{value.name} is {value.type}, of which no tokens can be taken", node.loc)
        if value not in self._gathered:
            self._gathered[value] = self.builder(node)("gather_tokens", whole, self.index)
        return self._gathered[value]


@dataclass
class _Pruning:
    """The pruning of one graph; the graph stays as it is."""

    options: PruneTokens
    graph: Graph
    program: Program
    sites: list[Site] = field(default_factory=list)
    states: list[str] = field(default_factory=list)

    def run(self) -> Graph:
        blocks = find_blocks(self.graph).blocks
        number, block = self._block(blocks)
        length, rows = token_axis(block.end), self._rows()
        attending = Attending.of(block)
        assert block.end.producer is not None, "a block ends in a node"
        place, kept = block.end.producer, self._kept(length, rows.shape[1])
        made = _Kept(self.graph, length, self.options.name, rows=rows)
        for node in self.graph.nodes:
            made.copy(node)
            if node is place:
                made.index = self._chosen(made, node, attending, kept)
                made.new_rows = _renumbered(made.builder(node), made.index, made.value(rows), length)
                fewer = made.builder(node)("gather_tokens", made.value(block.end), made.index)
                made.shorten(block.end, fewer, kept)
        self.states = [state.name for later in blocks[number + 1 :] for state in later.states]
        self.sites.append(Site(self.graph.name, place.loc, f"{kept} of {length} tokens stay behind layer {number}"))
        result = made.finish()
        erase_unused(result, list(result.reversed_nodes))
        return result

    def _block(self, blocks: Sequence[Block]) -> tuple[int, Block]:
        """The layer behind which tokens go. Raises NotShortened."""
        number = self.options.layer if self.options.layer is not None else len(blocks) // 2 - 1
        if not 0 <= number < len(blocks) - 1:
            reason = f"there is no layer behind layer {number}: {len(blocks)} are recognised" if blocks else "no blocks"
            raise NotShortened(reason, Loc())
        return number, blocks[number]

    def _rows(self) -> Value:
        name = self.program.meta.get("rows")
        found = next((value for value in self.graph.inputs if value.name == name), None)
        if found is None:
            raise NotShortened("prefill returns logits of all positions: the tokens that go would be missed", Loc())
        return found

    def _kept(self, length: SymDim, rows: Dim) -> Dim:
        share = Fraction(self.options.keep).limit_denominator(1000)
        wanted = (length * share.numerator + (share.denominator - 1)) // share.denominator
        return maximum(wanted, minimum(length, rows + (self.options.observers - 1)))

    def _chosen(self, made: _Kept, node: Node, attending: Attending, kept: Dim) -> Value:
        """The tokens that stay, ascending: i64[B, S']."""
        b, pos = made.builder(node), made.value(attending.pos)
        rows = made.value(self._rows())
        last = b("slice", rows, axis=1, start=-1)
        back = b("arange", start=1 - self.options.observers, stop=1)
        window = b("maximum", b("add", last, back), 0)
        newest = b("gather_tokens", pos, last)
        first = b("add", newest, 1 - self.options.observers)
        real = b("ge", pos, 0)
        scores = importance(b, attending, made.mapping, window, self.options.scorer)
        older = b("where", b("and", real, b("lt", pos, first)), scores, 0.0)
        pooled = b("where", real, b("pool_scores", older, width=self.options.width), -_SURE)
        sure = b("where", b("and", real, b("ge", pos, first)), _SURE, pooled)
        wanted = b("full", shape=rows.shape, value=_SURE, dtype=sure.dtype)
        return b("topk_tokens", b("scatter_tokens", sure, rows, wanted), keep=kept, last=0)


def _renumbered(b: Builder, index: Value, rows: Value, length: SymDim) -> Value:
    """Where the wanted rows are among the tokens that stay: i64[B, R]."""
    batch, kept = index.shape
    places = b("expand", b("reshape", b("arange", stop=kept), shape=(1, kept)), shape=(batch, kept))
    none = b("full", shape=(batch, length), value=0, dtype="i64")
    return b("gather_tokens", b("scatter_tokens", none, index, places), rows)
