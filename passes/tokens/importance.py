"""How much the last tokens of a prompt look at each of the others, by the attention of one layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from irx.analysis.blocks import Block
from irx.ir.graph import Builder, Loc, Node, Value
from irx.passes.tokens.shortening import NotShortened

_FAR = 1e30  # a log-sum-exp that leaves nothing of any logit


@dataclass(frozen=True)
class Attending:
    """The attention of a layer over a cache: q [B, H, S, D], the new k and v [B, G, S, D], their positions [B, S]."""

    node: Node
    q: Value
    k: Value
    v: Value
    pos: Value

    @staticmethod
    def of(block: Block) -> Attending:
        """Of a block of `prefill`. Raises NotShortened where its attention cannot be followed."""
        found = [node for unit in block.units for node in unit.nodes if node.op.name == "kv_attention"]
        if len(found) != 1:
            raise NotShortened(f"the layer has {len(found)} attentions to caches", Loc(block.module))
        node = found[0]
        state = node.operand("kv")
        append = state.producer if state is not None else None
        if append is None or append.op.name != "kv_append":
            raise NotShortened("the attention's keys are not appended beside it", node.loc)
        reasons = (
            (not node.attr("causal"), "the attention is not causal"),
            (node.attr("window") is not None, "the layer's attention sees a window only: name another layer"),
            (node.attr("softcap") is not None, "the layer's attention caps its logits"),
            (node.operand("table") is not None, "the layer's attention has a table of biases"),
        )
        for fails, reason in reasons:
            if fails:
                raise NotShortened(reason, node.loc)
        q, (_, k, v, pos) = node.inputs[0], append.inputs
        assert q is not None and k is not None and v is not None and pos is not None, "they are no optional operands"
        return Attending(node, q, k, v, pos)


def importance(b: Builder, attending: Attending, mapping: Mapping[Value, Value], window: Value, scorer: str) -> Value:
    """Scores f32[B, S] of the tokens as seen from the tokens `window` i64[B, W].

    window: what they get of the attention of these tokens, summed over tokens and heads. last-query: the logits of
    the one token of `window`, averaged over heads. Tokens newer than the oldest of `window` have no sensible score.
    """
    q, k, v, pos = (mapping.get(value, value) for value in (attending.q, attending.k, attending.v, attending.pos))
    rows = b("permute", b("gather_tokens", b("permute", q, order=(0, 2, 1, 3)), window), order=(0, 2, 1, 3))
    if scorer == "last-query":
        return _logits(b, rows, k)
    batch, length = pos.shape
    when = b("reshape", b("gather_tokens", pos, window), shape=(batch, 1, window.shape[1], 1))
    places = b("reshape", pos, shape=(batch, 1, 1, length))
    seen = b("and", b("le", places, when), b("ge", places, 0))
    how = {"scale": attending.node.attr("scale")}
    sinks = attending.node.operand("sinks")
    _, lse = b.many("attention_lse", rows, k, v, seen, None, sinks, **how)
    finite = b("where", b("gt", lse, -_FAR), lse, _FAR)  # rows of padding see nothing
    shares, _ = b.many("attention_stats", rows, k, finite, **how)
    return b("sum", shares, axes=(1,))


def _logits(b: Builder, rows: Value, k: Value) -> Value:
    """q k^T of one row, averaged over heads: [B, H, 1, D] and [B, G, S, D] give f32[B, S]."""
    batch, heads, _, channels = rows.shape
    groups = k.shape[1]
    assert isinstance(heads, int) and isinstance(groups, int), "heads are counted"
    grouped = b("reshape", rows, shape=(batch, groups, heads // groups, channels))
    logits = b("matmul", grouped, b("permute", k, order=(0, 1, 3, 2)))
    return b("cast", b("mean", logits, axes=(1, 2)), dtype="f32")
