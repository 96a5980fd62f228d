"""Ops that look at tokens to choose, and merge those that were chosen: each a region of its own."""

from __future__ import annotations

from collections.abc import Callable

from irx.backends.regions.lowered import Call, Case, Choices, Lowered, lone, single
from irx.backends.tvm.lanes import COMPUTED
from irx.backends.tvm.templates.attention_lse import lse_call, stats_call
from irx.backends.tvm.templates.match_tokens import match_calls
from irx.backends.tvm.templates.merge_tokens import merge_call
from irx.backends.tvm.templates.select_tokens import pool_calls, scatter_calls, topk_calls
from irx.ir.dims import Dim
from irx.ir.graph import Graph, Node

HEADED = 4  # axes of keys, of which tokens are the third
FEW = 16
"""Shorter sequences are a case of their own, so that checks also meet some that are long enough to merge tokens of."""

TEMPLATES: dict[str, Callable[[Node], tuple[Call, ...]]] = {
    "attention_lse": lambda node: (lse_call(node),),
    "attention_stats": lambda node: (stats_call(node),),
    "match_tokens": match_calls,
    "merge_tokens": lambda node: (merge_call(node),),
    "pool_scores": pool_calls,
    "topk_tokens": topk_calls,
    "scatter_tokens": scatter_calls,
}


def rule(body: Graph, choices: Choices) -> Lowered | None:
    """Kernels of a body of one of these ops. Raises Refusal."""
    node = lone(body, TEMPLATES, COMPUTED)
    if node is None:
        return None
    calls, length = TEMPLATES[node.op.name](node), _tokens(node)
    if isinstance(length, int):
        return single(*calls)
    return Lowered((Case(calls, length, FEW), Case(calls)))


def _tokens(node: Node) -> Dim:
    """How many tokens are chosen from."""
    value = node.operand("k") if node.op.name.startswith("attention") else node.inputs[0]
    assert value is not None
    return value.shape[2 if len(value.shape) == HEADED else 1]
