"""The torch backend: any node, on any device torch has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

import irx.ops  # noqa: F401  declares the ops that a text names
from irx.backends.torch.plan import Plan
from irx.errors import DamagedArtifact
from irx.ir.graph import Graph, Node, Weight
from irx.ir.parser import parse
from irx.ir.printer import print_program
from irx.ir.program import Program
from irx.ir.sizes import used_sizes
from irx.ir.dims import Range
from irx.target import Device

FILE = "graph.irx"


class TorchBackend:
    """Builds nothing but the graph's own text; loading it makes a plan of torch functions."""

    name = "torch"

    def supports(self, node: Node, device: Device) -> str | None:
        """Everything is supported."""
        return None

    def spaces(self, graph: Graph, device: Device) -> tuple[Any, ...]:
        """There is nothing to tune."""
        return ()

    def build(self, graph: Graph, device: Device, schedules: Mapping[str, Any]) -> dict[str, bytes]:
        """The graph as text."""
        return {FILE: print_program(_alone(graph)).encode()}

    def load(self, blobs: Mapping[str, bytes], device: str) -> Plan:
        """The kernel of a graph that `build` wrote, for a torch device. Nothing of the text is executed as Python."""
        if FILE not in blobs:
            raise DamagedArtifact(f"a kernel of the torch backend lacks {FILE}", fix="compile and save it again")
        (graph,) = parse(blobs[FILE].decode(), FILE).graphs.values()
        return Plan(graph, torch.device(device))


BACKEND = TorchBackend()


def _alone(graph: Graph) -> Program:
    """A program of this graph only, with its weights declared and without their arrays."""
    program = Program(graph.name, {graph.name: graph})
    read = {v for node in graph.nodes for v in node.inputs if isinstance(v, Weight)}
    read |= {v for v in graph.outputs if isinstance(v, Weight)}
    for weight in sorted(read, key=lambda w: w.name):
        program.weights.add(weight.name, weight.tensor)
    program.sizes = dict.fromkeys(used_sizes(graph), Range())
    return program
