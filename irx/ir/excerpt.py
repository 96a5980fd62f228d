"""A part of a program that stands for itself, as a backend writes it beside the kernels it made of it."""

from __future__ import annotations

from irx.ir.graph import Graph
from irx.ir.program import Program
from irx.ir.sizes import used_sizes

MAIN = ("decode", "forward")


def main_graph(program: Program) -> Program:
    """A copy with only the graph that one step runs: `decode` where there is one, else `forward`, else the first."""
    name = next((name for name in (*MAIN, *program.graphs) if name in program.graphs), None)
    return only(program, name)


def only(program: Program, name: str | None) -> Program:
    """A copy with only the graph of that name; with None, without graphs."""
    copy = program.clone()
    copy.graphs = {name: copy.graphs[name]} if name is not None else {}
    return copy


def excerpt(program: Program, graph: Graph) -> Program:
    """A program of this graph only, with its weights declared and without their arrays."""
    alone = Program(graph.name, {graph.name: graph})
    for weight in alone.used_weights():
        alone.weights.add(weight.name, weight.tensor)
    used = used_sizes(graph)
    alone.sizes = {name: limits for name, limits in program.sizes.items() if name in used}
    return alone
