"""fold-constants: what is computed from weights alone becomes a derived weight, evaluated once, when it is needed.

Before:

    weight $w : bf16[64]
    %a = irx.cast($w) {dtype="f32"} : f32[64]
    %b = irx.add(%a, 1.0) : f32[64]
    %y = irx.mul(%x, %b) : f32[B, 64]

After:

    weight $w : bf16[64]
    weight $w.cast : f32[64] = irx.cast($w) {dtype="f32"}
    weight $w.cast.add : f32[64] = irx.add($w.cast, 1.0)
    %y = irx.mul(%x, $w.cast.add) : f32[B, 64]

Nothing that knows a named size is folded, nor what would only take more memory as a weight: `expand`, `full` and
`dequantize`. A derived weight is rounded to its dtype, as the model itself would round it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from irx.analysis.structure import attributes, is_static
from irx.ir.dims import SymDim
from irx.ir.graph import Graph, Literal, Node, Weight
from irx.ir.program import Program
from irx.ir.spelling import format_operand
from irx.ir.weights import Weights
from irx.pipeline.base import Context, Effect, Pass, Report, Site, Stage
from irx.rewrite.report import Fuel

_KEPT = frozenset({"dequantize", "expand", "full", "torch.call"})
_Known: TypeAlias = "dict[tuple[str, ...], Weight]"


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Turn nodes that read only weights into derived weights; with `generated`, an `arange` of fixed size as well."""

    generated: bool = True

    name = "fold-constants"
    stage = Stage.NORMALIZE
    effect = Effect.ROUNDING

    def run(self, program: Program, ctx: Context) -> Report:
        report = Report()
        known: _Known = {}
        for graph in program.graphs.values():
            report.sites += self._fold(graph, program.weights, known, ctx.fuel)
        return report

    def _fold(self, graph: Graph, weights: Weights, known: _Known, fuel: Fuel) -> Iterator[Site]:
        for node in graph.nodes:
            operands = _constant_operands(node)
            if operands is None or not (self.generated or any(isinstance(v, Weight) for v in operands)):
                continue
            if not fuel.take():
                return
            graph.replace(node.output, _weight(node, operands, weights, known))
            graph.erase(node)
            yield Site(graph.name, node.loc, node.op.name)


def _constant_operands(node: Node) -> list[Weight | Literal] | None:
    """The operands, where the node can be folded."""
    if node.op.name in _KEPT or not node.op.pure or len(node.outputs) != 1 or not is_static(node.output):
        return None
    operands = [v for v in node.inputs if isinstance(v, Weight | Literal)]
    sized = any(isinstance(v, Literal) and isinstance(v.value, SymDim) for v in operands)
    return None if sized or len(operands) < len(node.inputs) else operands


def _weight(node: Node, operands: list[Weight | Literal], weights: Weights, known: _Known) -> Weight:
    """The derived weight, the same for every node that computes the same."""
    key = (node.op.name, attributes(node), *map(format_operand, operands))
    if key not in known:
        base = next((v.name for v in operands if isinstance(v, Weight)), "")
        name = f"{base}.{node.op.name}" if base else node.op.name
        known[key] = weights.derive(name, node.op.name, operands, **node.attrs)
    return known[key]
