"""Ops that choose or draw tokens, look at attention for it, merge or round them: each a region of its own."""

from __future__ import annotations

from collections.abc import Callable

from irx.backends.regions.lowered import Call, Choices, Lowered, lone, single
from irx.backends.triton.templates.attention_statistics import lse_calls, stats_calls
from irx.backends.triton.templates.draw_token import draw_calls
from irx.backends.triton.templates.match_tokens import match_calls
from irx.backends.triton.templates.merge_tokens import merge_calls
from irx.backends.triton.templates.round_tokens import round_calls
from irx.backends.triton.templates.select_tokens import pool_calls, scatter_calls, topk_calls
from irx.backends.triton.writer import ELEMENTS
from irx.ir.graph import Graph, Node

TEMPLATES: dict[str, Callable[[Node], tuple[Call, ...]]] = {
    "attention_lse": lse_calls,
    "attention_stats": stats_calls,
    "match_tokens": match_calls,
    "merge_tokens": merge_calls,
    "pool_scores": pool_calls,
    "topk_tokens": topk_calls,
    "scatter_tokens": scatter_calls,
    "round_tokens": round_calls,
    "sample": draw_calls,
}
COMPUTED = frozenset(ELEMENTS) - {"f64"}
NUMBERS = frozenset(ELEMENTS)  # what a token is drawn with may be of any dtype, but not its logits


def rule(body: Graph, choices: Choices) -> Lowered | None:
    """Kernels of a body of one of these ops. Raises Refusal."""
    node = lone(body, TEMPLATES, NUMBERS if any(node.op.name == "sample" for node in body.nodes) else COMPUTED)
    if node is None:
        return None
    return single(*TEMPLATES[node.op.name](node))
