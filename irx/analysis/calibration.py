"""Calibration: the user's data run through a program, streamed, so that passes can look at its values.

    for batch in ctx.calibration.values(program, [x, y]):     # values of the graph `forward`
        found_x, found_y = batch                              # arrays, as the model computes them

Nothing is kept but what the caller keeps: a pass that wants sums or moments adds them up as the batches come. The order
is that of the data, so equal data give equal statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from irx.ir.graph import Graph, Value
from irx.ir.opdef import Array
from irx.ir.program import Program

Inputs: TypeAlias = Mapping[str, Array]
"""Arrays by the names of a graph's inputs."""
Prepare: TypeAlias = Callable[[Program], "Callable[[Inputs], list[Array]]"]
"""From a program of one graph to a function that runs it, fast, in the program's own dtypes."""

FORWARD = "forward"


@dataclass(frozen=True)
class Calibration:
    """Batches of inputs of `forward`, what makes a program runnable, and a hash of both for cache keys."""

    batches: Sequence[Inputs]
    prepare: Prepare
    digest: str = ""

    def values(self, program: Program, wanted: Sequence[Value]) -> Iterator[list[Array]]:
        """The arrays of values of `program`'s graph `forward`, batch by batch. The program stays as it is."""
        run = self.prepare(exposing(program, wanted))
        for batch in self.batches:
            yield run(batch)


def exposing(program: Program, wanted: Sequence[Value], graph: str = FORWARD) -> Program:
    """A program of one graph that computes `wanted`, values of that graph, and nothing that they do not need."""
    source = program.graphs[graph]
    made = Graph(graph)
    known: dict[Value, Value] = {value: made.add_input(value.name, value.type) for value in source.inputs}
    needed = _needed(wanted)
    for node in source.nodes:
        if needed.intersection(node.outputs):
            copy = made.add_copy(node, known)
            known.update(zip(node.outputs, copy.outputs, strict=True))
    made.set_outputs({f"value{i}": known.get(value, value) for i, value in enumerate(wanted)})
    return Program(program.name, {graph: made}, program.weights, dict(program.sizes), list(program.relations))


def _needed(wanted: Sequence[Value]) -> set[Value]:
    found, waiting = set(wanted), list(wanted)
    while waiting:
        producer = waiting.pop().producer
        for value in () if producer is None else producer.inputs:
            if value is not None and value not in found:
                found.add(value)
                waiting.append(value)
    return found
