"""What a step of kernels costs on a GPU at least: moving its bytes, and starting its kernels one after the other.

Both floors hold at once; the larger one says what is worth working on. The prediction adds up, kernel by kernel, the
slower of memory and arithmetic and the start: as if every kernel reached the device's peak, and none overlapped the
next (Williams, Waterman, Patterson: Roofline, 2009; the starts are what it leaves out).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from irx.analysis.roofline import Floor, graph_floor, node_floor
from irx.ir.dims import Bindings
from irx.ir.graph import Graph, Node
from irx.target import Device


@dataclass(frozen=True)
class Launches:
    """A step of `count` kernels; `floor` is that of its graph, `kernel_seconds` the sum of its nodes' floors."""

    count: int
    floor: Floor
    kernel_seconds: float

    @property
    def start_seconds(self) -> float:
        """The floor of starting kernels."""
        return self.count * launch_seconds(self.floor.device)

    @property
    def predicted_seconds(self) -> float:
        """The time of a step if every kernel is as fast as the device allows."""
        return self.kernel_seconds + self.start_seconds

    @property
    def bound(self) -> str:
        """What the larger floor is: `memory`, `compute` or `launches`."""
        return "launches" if self.start_seconds > self.floor.seconds else self.floor.bound

    def __str__(self) -> str:
        floors = f"{self.floor.seconds * 1e6:.4g} us by {self.floor.bound}, {self.start_seconds * 1e6:.4g} us by starts"
        return f"{self.count} launches; floors {floors}; modelled {self.predicted_seconds * 1e6:.4g} us"


def launches(graph: Graph, device: Device, sizes: Bindings, nodes: Iterable[tuple[Node, int]]) -> Launches:
    """The costs of a graph of which each node of `nodes` takes that many kernels, 0 where it shares that of another.

    Raises KeyError as `graph_floor`.
    """
    counted = list(nodes)
    seconds = sum(node_floor(node, device, sizes).seconds for node, _ in counted)
    return Launches(sum(count for _, count in counted), graph_floor(graph, device, sizes), seconds)


def launch_seconds(device: Device) -> float:
    """What starting one kernel of a captured graph takes. Raises ValueError for a CPU."""
    if device.gpu is None:
        raise ValueError(f"{device.name} is no GPU")
    return device.gpu.launch_us * 1e-6
