"""cse: one node where several compute the same (common subexpression elimination).

Before:

    %a = irx.cos(%angles) : f32[1, S, 8]
    %b = irx.cos(%angles) : f32[1, S, 8]
    %c = irx.add(%a, %b) : f32[1, S, 8]

After:

    %a = irx.cos(%angles) : f32[1, S, 8]
    %c = irx.add(%a, %a) : f32[1, S, 8]

Equal means: the same pure op, operands and attributes. The first of them stays, with its location.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from irx.analysis.structure import attributes
from irx.ir.graph import Graph, Literal, Node, Value, Weight
from irx.ir.program import Program
from irx.pipeline.base import Context, Effect, Pass, Report, Site, Stage
from irx.rewrite.report import Fuel

_Operand: TypeAlias = "Value | str | None"
_Key: TypeAlias = "tuple[str, tuple[_Operand, ...], str]"


@dataclass(frozen=True)
class Cse(Pass):
    """Let equal pure nodes be one."""

    name = "cse"
    stage = Stage.NORMALIZE
    effect = Effect.EXACT

    def run(self, program: Program, ctx: Context) -> Report:
        report = Report()
        for graph in program.graphs.values():
            report.sites += _merge(graph, ctx.fuel)
        return report


def _merge(graph: Graph, fuel: Fuel) -> list[Site]:
    first: dict[_Key, Node] = {}
    sites = []
    for node in graph.nodes:
        if not node.op.pure:
            continue
        known = first.setdefault(_key(node), node)
        if known is node or not fuel.take():
            continue
        for old, new in zip(node.outputs, known.outputs, strict=True):
            graph.replace(old, new)
        graph.erase(node)
        sites.append(Site(graph.name, node.loc, node.op.name))
    return sites


def _key(node: Node) -> _Key:
    return node.op.name, tuple(map(_operand, node.inputs)), attributes(node)


def _operand(value: Value | None) -> _Operand:
    """Literals are equal when they are spelled equally (1 is not 1.0), weights when they have one name."""
    if isinstance(value, Weight):
        return f"${value.name}"
    return repr(value.value) if isinstance(value, Literal) else value
