"""Mixtures of experts with float weights: streamed for each of a few tokens, rows grouped by expert for many."""

from __future__ import annotations

from irx.backends.regions.lowered import Case, Choices, Lowered, Refusal
from irx.backends.tvm.templates.moe import few_calls, many_calls
from irx.backends.tvm.templates.moe_shape import experts_of
from irx.ir.graph import Graph

FEW = 2
"""Tokens up to which grouping costs more than reading an expert's weights again for another token."""


def rule(body: Graph, choices: Choices) -> Lowered | None:
    """Kernels for a body of one `moe`; None without one. Raises Refusal for what else is in the body."""
    found = [node for node in body.nodes if node.op.name == "moe"]
    if not found:
        return None
    node = found[0]
    if list(body.outputs) != [node.output]:
        raise Refusal("a region that computes more than its experts")
    experts = experts_of(body, node, choices.device)
    if isinstance(experts.tokens, int):
        return Lowered((Case(few_calls(experts) if experts.tokens <= FEW else many_calls(experts)),))
    return Lowered((Case(few_calls(experts), experts.tokens, FEW), Case(many_calls(experts))))
