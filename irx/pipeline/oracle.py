"""The oracle that passes ask: float64 evaluation with the weights of the very program that a pass works on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from irx.analysis.reference import Call, evaluate
from irx.ir.graph import Graph
from irx.ir.opdef import Array
from irx.ir.program import Program
from irx.ir.weights import Weights
from irx.pipeline.base import Context


@dataclass(frozen=True)
class Oracle:
    """`ctx.evaluate`. `call` runs `torch.call` nodes; without it, evaluating one raises NoReference."""

    weights: Weights = field(default_factory=Weights)
    call: Call | None = None

    def __call__(self, graph: Graph, inputs: Mapping[str, Any], sizes: Mapping[str, int]) -> list[Array]:
        """The outputs of `graph`, floats as float64."""
        return evaluate(graph, inputs, sizes, self.weights, self.call)


def reading(ctx: Context, program: Program) -> Context:
    """`ctx` with an Oracle that reads this program's weights, those it has just derived included.

    An evaluator of another kind is left as it is.
    """
    if not isinstance(ctx.evaluate, Oracle):
        return ctx
    return replace(ctx, evaluate=replace(ctx.evaluate, weights=program.weights))
