"""The torch backend: any node, on any device torch has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

import irx.ops  # noqa: F401  declares the ops that a text names
from irx.backends.torch.plan import Plan
from irx.errors import DamagedArtifact
from irx.ir.excerpt import excerpt
from irx.ir.graph import Graph, Node
from irx.ir.parser import parse
from irx.ir.printer import print_program
from irx.ir.program import Program
from irx.ir.regions import expanded
from irx.target import Device

FILE = "graph.irx"


class TorchBackend:
    """Builds nothing but the graph's own text; loading it makes a plan of torch functions."""

    name = "torch"
    layouts = frozenset({"dense"})
    endings: frozenset[str] = frozenset()

    def missing(self, device: Device) -> str | None:
        """Torch is always there."""
        return None

    def supports(self, node: Node, device: Device) -> str | None:
        """Everything is supported."""
        return None

    def spaces(self, program: Program, graph: Graph, device: Device) -> tuple[Any, ...]:
        """There is nothing to tune."""
        return ()

    def build(self, program: Program, graph: Graph, device: Device) -> dict[str, bytes]:
        """The graph as text, with the bodies of fusions in their places."""
        return {FILE: print_program(excerpt(program, expanded(graph))).encode()}

    def latency(self, program: Program, graph: Graph, device: Device, context: int) -> str:
        """Passes are for kernels that torch does not have; nothing is measured."""
        return "torch runs the model, whose kernels do not depend on passes"

    def latencies(self, graphs: Sequence[Graph], device: Device, context: int) -> list[Any]:
        """There are none to compare."""
        return []

    def load(self, blobs: Mapping[str, bytes], device: Device) -> Plan:
        """The kernel of a graph that `build` wrote. Nothing of the text is executed as Python."""
        if FILE not in blobs:
            raise DamagedArtifact(f"a kernel of the torch backend lacks {FILE}", fix="compile and save it again")
        (graph,) = parse(blobs[FILE].decode(), FILE).graphs.values()
        return Plan(graph, torch.device(device.place))

    def restore(self, blobs: Mapping[str, bytes], device: Device) -> Plan:
        """The same: torch has kernels for every device."""
        return self.load(blobs, device)


BACKEND = TorchBackend()
