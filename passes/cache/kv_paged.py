"""kv-paged: slots lie in pages, which rows take as they grow.

Before:

    graph @decode(%x: f32[B, 2, 1, 64], %pos: i64[B, 1], %kv0: kv<heads=2, dim=64, dense, f32>) -> (...) {
      %kv = irx.kv_append(%kv0, %x, %x, %pos) : kv<heads=2, dim=64, dense, f32>
      %y = irx.kv_attention(%x, %kv, %pos) {scale=0.125}

After:

    graph @decode(%x: f32[B, 2, 1, 64], %pos: i64[B, 1], %kv0: kv<heads=2, dim=64, dense, f32, page=64>) -> (...) {
      %kv = irx.kv_append(%kv0, %x, %x, %pos) : kv<heads=2, dim=64, dense, f32, page=64>
      %y = irx.kv_attention(%x, %kv, %pos) {scale=0.125}

No op's result depends on it. Memory does: rows of a session take a page when their tokens reach it, whatever the others
have, forks read the pages they have in common, and nothing is copied into a larger room but the table of pages (and,
where the store of pages itself grows, a quarter at a time, those that are there). `irx.runtime.kv_paged` has the table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from irx.ir.codes import tailed
from irx.ir.graph import Graph, Value
from irx.ir.program import Program
from irx.ir.types import KVType
from irx.passes.cache.versions import fused, retype_all, users
from irx.pipeline.base import Context, Effect, Pass, Report, Stage


@dataclass(frozen=True)
class KvPaged(Pass):
    """Store keys and values in pages of `page` tokens, of which a session and its forks have `pages` at most.

    CPU kernels read 64 keys at once and so pages that are multiples of it; GPU kernels and torch read any size.
    """

    page: int = 64
    pages: int | None = None

    name = "kv-paged"
    stage = Stage.CACHE
    effect = Effect.EXACT
    paper = "Kwon et al. 2023, PagedAttention, arXiv:2309.06180"

    def __post_init__(self) -> None:
        if self.page < 1:
            raise ValueError(f"page is {self.page}, but must be at least 1")
        if self.pages is not None and self.pages < 1:
            raise ValueError(f"pages is {self.pages}, but must be at least 1")

    def run(self, program: Program, ctx: Context) -> Report:
        partial = program.meta.get("partial", ())

        def obstacle(graph: Graph, state: Value) -> str | None:
            if state.name in partial:
                return f"%{state.name} gets some tokens of a prompt only: slots are no positions"
            return _obstacle(graph, state)

        what = f"cache in pages of {self.page} tokens"
        return retype_all(program, ctx, obstacle, lambda kv: replace(kv, page=self.page, pages=self.pages), what)


def _obstacle(graph: Graph, state: Value) -> str | None:
    """The first reason why the slots of a state lie side by side."""
    kv = state.type
    assert isinstance(kv, KVType), "states_of gives states"
    moved = next((n.op.name for n in users(graph, state) if n.op.name not in ("kv_append", "kv_attention")), None)
    reasons = (
        (kv.page is not None, f"%{state.name} lies in pages already"),
        (fused(graph, state), f"%{state.name} is read in a fused region: pages are made before"),
        (moved is not None, f"{moved} moves the tokens of %{state.name}"),
        (kv.window is not None, f"%{state.name} is a ring: few slots, all of them in use"),
        (kv.kept is not None or kv.capacity is not None, f"%{state.name} keeps some tokens only"),
        (kv.prefix, f"%{state.name} shares prefixes, which nobody pages"),
        (tailed(kv.code) is not None, f"%{state.name} is stored as {kv.code}, groups of tokens behind a tail"),
    )
    return next((reason for fails, reason in reasons if fails), None)
