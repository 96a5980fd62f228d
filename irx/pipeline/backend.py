"""What a backend is: the part that turns a graph and its schedules into kernels for one device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from irx.ir.graph import Graph, Node
from irx.ir.program import Program
from irx.pipeline.latency import Latency as Latency
from irx.runtime.kernel import GraphKernel
from irx.target import Device


class Backend(Protocol):
    """What a backend does; `load` imports no code generator, so that a saved model runs without one."""

    name: str
    layouts: frozenset[str]
    """Layouts of a KV state that the backend reads as they are."""
    endings: frozenset[str]
    """Ops besides elementwise ones that its kernels of products may end in."""

    def missing(self, device: Device) -> str | None:
        """What this installation or machine lacks to build for the device with this backend; None where nothing."""

    def supports(self, node: Node, device: Device) -> str | None:
        """Why the backend cannot run this node on the device; None where it can."""

    def spaces(self, program: Program, graph: Graph, device: Device) -> Sequence[Any]:
        """The tasks that tuning has for this graph, see `irx.tuning.Task`; none where there is nothing to choose."""

    def build(self, program: Program, graph: Graph, device: Device) -> dict[str, bytes]:
        """Everything that `load` needs, by file name: objects and binaries with their sources.

        Kernels get the best schedules that are known for the device.
        """

    def latency(self, program: Program, graph: Graph, device: Device, context: int) -> Latency | str:
        """The time of one call of the graph at `timed_sizes`, as the sum of its regions measured here, or why not."""

    def latencies(self, graphs: Sequence[Graph], device: Device, context: int) -> list[Latency]:
        """The times of graphs for which there is a `latency`, taken now and in turns; none where there are none."""

    def load(self, blobs: Mapping[str, bytes], device: Device) -> GraphKernel:
        """A kernel that runs the graph. Raises MissingFeature where this host cannot run it."""

    def restore(self, blobs: Mapping[str, bytes], device: Device) -> GraphKernel:
        """As `load`, of an artifact that was perhaps made for another device of its kind: kernels may be built again.

        Raises MissingFeature where the graph cannot be run here.
        """
