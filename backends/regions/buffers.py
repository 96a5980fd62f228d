"""Where the values of a graph lie: inputs, outputs, weights, and slots of one arena that dead values give back.

Views share the buffer of what they view. Slots are assigned once for all sizes: a slot is as large as the largest
value that ever lies in it, and two values share one only when the first is dead before the second is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from irx.backends.regions.sites import Site
from irx.ir.dims import Dim
from irx.ir.graph import Graph, Value, Weight
from irx.ir.opdef import tensor_bytes
from irx.ir.types import KVType, TensorType

VIEWS = ("reshape",)  # of a contiguous buffer, the same buffer


@dataclass
class Buffers:
    """`root` gives the value in whose buffer another lies; `slots` the arena slot of each root that has one.

    `sizes` are the byte expressions of all values that lie in a slot. `outputs_copied` are outputs that are no buffer
    of their own: inputs handed through, constants, or two names of one value.
    """

    root: dict[Value, Value] = field(default_factory=dict)
    slots: dict[Value, int] = field(default_factory=dict)
    sizes: list[list[Dim]] = field(default_factory=list)
    outputs_copied: list[int] = field(default_factory=list)

    def offsets(self, evaluate: Callable[[Dim], int]) -> tuple[list[int], int]:
        """The byte offset of every slot, and the size of the arena, for one binding of sizes."""
        offsets, end = [], 0
        for sizes in self.sizes:
            offsets.append(end)
            end += padded(max(map(evaluate, sizes)))
        return offsets, end


def padded(size: int) -> int:
    """`size` bytes and 64 that may be read behind them, up to the next multiple of 64."""
    return (size + 127) // 64 * 64


def plan_buffers(graph: Graph, steps: Sequence[Site], constants: Mapping[Value, object]) -> Buffers:
    """Buffers for all values of `graph` that are no constants, for steps that run in this order."""
    buffers = Buffers()
    for value in graph.inputs:
        buffers.root[value] = value
    for site in steps:
        _give_roots(buffers, site)
    owned = _own_outputs(buffers, graph, constants)
    _assign_slots(buffers, graph, steps, constants, owned)
    return buffers


def _give_roots(buffers: Buffers, site: Site) -> None:
    for value in site.results:
        buffers.root[value] = value
    if site.node.op.name in VIEWS and site.operands[0] in buffers.root:
        buffers.root[site.results[0]] = buffers.root[site.operands[0]]
    for inner, outer in zip(site.body.outputs, site.results, strict=True):
        if isinstance(inner.type, KVType):
            buffers.root[outer] = buffers.root[_state_operand(site, inner)]


def _state_operand(site: Site, inner: Value) -> Value:
    """The operand whose state the body's result is: appending works in place."""
    while inner.producer is not None:
        inner = next(v for v in inner.producer.inputs if v is not None and isinstance(v.type, KVType))
    return site.actual(inner)


def _own_outputs(buffers: Buffers, graph: Graph, constants: Mapping[Value, object]) -> dict[Value, int]:
    """Roots that are written straight into an output, with its index; other tensor outputs are copied."""
    owned: dict[Value, int] = {}
    for index, value in enumerate(graph.outputs):
        if not isinstance(value.type, TensorType):
            continue
        root = None if value in constants or isinstance(value, Weight) else buffers.root[value]
        if root is None or root in owned or root in graph.inputs:
            buffers.outputs_copied.append(index)
        else:
            owned[root] = index
    return owned


def _assign_slots(
    buffers: Buffers,
    graph: Graph,
    steps: Sequence[Site],
    constants: Mapping[Value, object],
    owned: Mapping[Value, int],
) -> None:
    last: dict[Value, int] = {}
    for i, site in enumerate(steps):
        for value in (*site.operands, *site.results):
            if value in buffers.root:
                last[buffers.root[value]] = i
    for index in buffers.outputs_copied:
        if graph.outputs[index] in buffers.root:
            last[buffers.root[graph.outputs[index]]] = len(steps)
    free: list[int] = []
    ending: dict[int, list[int]] = {}
    for i, site in enumerate(steps):
        for value in site.results:
            if buffers.root[value] is value and value not in owned and isinstance(value.type, TensorType):
                slot = _take(buffers, free, tensor_bytes(value.type))
                buffers.slots[value] = slot
                ending.setdefault(last.get(value, i), []).append(slot)
        free += ending.pop(i, [])


def _take(buffers: Buffers, free: list[int], size: Dim) -> int:
    """A free slot that has held this size before, else any free one, else a new one."""
    for slot in free:
        if size in buffers.sizes[slot]:
            free.remove(slot)
            return slot
    if free:
        slot = free.pop()
        buffers.sizes[slot].append(size)
        return slot
    buffers.sizes.append([size])
    return len(buffers.sizes) - 1
