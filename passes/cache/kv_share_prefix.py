"""kv-share-prefix: rows may begin with the same tokens, which are stored and read once.

Before:

    graph @decode(%x: f32[B, 2, 1, 64], %pos: i64[B, 1], %kv0: kv<heads=2, dim=64, dense, f32>) -> (...) {
      %kv = irx.kv_append(%kv0, %x, %x, %pos) : kv<heads=2, dim=64, dense, f32>
      %y = irx.kv_attention(%x, %kv, %pos) {scale=0.125}

After:

    graph @decode(%x: f32[B, 2, 1, 64], %pos: i64[B, 1], %kv0: kv<heads=2, dim=64, dense, f32, prefix=shared>) -> ... {
      %kv = irx.kv_append(%kv0, %x, %x, %pos) : kv<heads=2, dim=64, dense, f32, prefix=shared>
      %y = irx.kv_attention(%x, %kv, %pos) {scale=0.125}

Attention to a state whose type says so has two parts: the queries of all rows, stacked, to the prefix, and each row's
own to its own tokens; the log-sum-exps join them. Without a prefix the first part is empty. Sessions get one with
`executable.session(batch, prefix=executable.prefix(ids))`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from irx.ir.codes import tailed
from irx.ir.graph import Graph, Node, Value
from irx.ir.program import Program
from irx.ir.types import KVType
from irx.passes.cache.versions import fused, retype_all, users
from irx.pipeline.base import Context, Effect, Pass, Report, Stage


@dataclass(frozen=True)
class KvSharePrefix(Pass):
    """Let the rows of a batch share the keys and values of a common prefix, read once for all of them."""

    name = "kv-share-prefix"
    stage = Stage.CACHE
    effect = Effect.ROUNDING
    conflicts = ("kv-evict", "kv-ring")
    paper = "Juravsky et al. 2024, Hydragen, arXiv:2402.05099"

    def run(self, program: Program, ctx: Context) -> Report:
        what = "keys and values of a prefix shared by all rows"
        return retype_all(program, ctx, _obstacle, lambda kv: replace(kv, prefix=True), what)


def _obstacle(graph: Graph, state: Value) -> str | None:
    """The first reason why a state begins with tokens of its own."""
    kv = state.type
    assert isinstance(kv, KVType), "states_of gives states"
    if kv.prefix:
        return f"%{state.name} shares prefixes already"
    if kv.kept is not None or kv.capacity is not None or kv.window is not None:
        return f"%{state.name} keeps some tokens only: which ones would differ from row to row"
    if kv.page is not None:
        return f"%{state.name} lies in pages: rows that begin alike are forks, which read the same ones"
    if tailed(kv.code) is not None:
        return f"%{state.name} is stored as {kv.code}, whose tail slides into the prefix"
    if kv.heads != kv.value_heads:
        return f"{kv.heads} heads of keys, but {kv.value_heads} of values"
    if fused(graph, state):
        return f"%{state.name} is read in a fused region"
    return next((reason for node in users(graph, state) if (reason := _odd(node)) is not None), None)


def _odd(node: Node) -> str | None:
    """Why a node reads a state in a way that has no two parts."""
    if node.op.name not in ("kv_append", "kv_attention"):
        return f"{node.op.name} moves tokens"
    if node.op.name == "kv_append":
        return None
    if node.attr("window") is not None:
        return f"a window of {node.attr('window')} tokens leaves the prefix behind"
    if node.operand("table") is not None:
        return "biases by distance are no part of a prefix"
    return None if node.attr("causal") else "queries without an order"
