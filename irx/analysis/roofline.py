"""The least time that a node or a graph can take on a device: bytes over bandwidth, or operations over peak.

Two views. `node_work` is one node as it stands: every operand read, every result written, weights at the size they are
stored in. `graph_floor` is what no compiler can avoid, however it fuses: every weight once (of a table that is looked
up, the rows), the caches, the inputs and the results of the graph. Values in between may stay in the processor's
caches and cost nothing. The floor of a graph is therefore the same before and after fusion.

Operations count at the peak of the narrowest dtype among a node's operands, packed weights as i8: what the fastest
kernel could use. What is computed from weights alone costs nothing, because it can be computed once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from irx.analysis.structure import between, is_constant
from irx.ir.dims import Bindings, Dim, evaluate
from irx.ir.graph import Graph, Literal, Node, Value, Weight
from irx.ir.opdef import Attr, lookup, tensor_bytes
from irx.ir.types import TensorType, Type, is_float, is_packed, item_bytes
from irx.target import Device


@dataclass(frozen=True)
class Work:
    """Bytes that are moved, and operations by the dtype they are done in (a multiply-add is two)."""

    bytes: int = 0
    flops: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, dict(Counter(self.flops) + Counter(other.flops)))

    @property
    def operations(self) -> int:
        """Operations in all dtypes together."""
        return sum(self.flops.values())


@dataclass(frozen=True)
class Floor:
    """Work on a device. Both resources can be busy at once, so the least time is that of the slower one."""

    work: Work
    device: Device

    @property
    def memory_seconds(self) -> float:
        """Bytes over bandwidth."""
        return self.work.bytes / self.device.bandwidth

    @property
    def compute_seconds(self) -> float:
        """Operations over peak, one dtype after the other."""
        return sum(count / self.device.peak(dtype) for dtype, count in self.work.flops.items())

    @property
    def seconds(self) -> float:
        """The least time."""
        return max(self.memory_seconds, self.compute_seconds)

    @property
    def bound(self) -> str:
        """What takes that time: `memory` or `compute`."""
        return "memory" if self.memory_seconds >= self.compute_seconds else "compute"

    def lines(self) -> list[str]:
        """`NN MB at NN GB/s = x ms`, then `NN GFLOP in DTYPE at NN GFLOP/s = y ms` for every dtype."""
        moved = f"{self.work.bytes / 1e6:.4g} MB at {self.device.bandwidth_gb_s:.4g} GB/s"
        return [f"{moved} = {self.memory_seconds * 1e3:.4g} ms", *map(self._line, sorted(self.work.flops))]

    def _line(self, dtype: str) -> str:
        count, peak = self.work.flops[dtype], self.device.peak(dtype)
        done = f"{count / 1e9:.4g} GFLOP in {dtype} at {peak / 1e9:.4g} GFLOP/s"
        return f"{done} = {count / peak * 1e3:.4g} ms"

    def __str__(self) -> str:
        return "; ".join(self.lines())


def node_floor(node: Node, device: Device, sizes: Bindings) -> Floor:
    """The least time of one node as it stands. Raises KeyError for a named size without a value."""
    return Floor(node_work(node, sizes), device)


def graph_floor(graph: Graph, device: Device, sizes: Bindings) -> Floor:
    """The least time of a graph. A cache without a fixed capacity holds `T` tokens. Raises KeyError as above."""
    return Floor(_total(least_work(graph, sizes).values()), device)


def module_floors(graph: Graph, device: Device, sizes: Bindings) -> dict[str, Floor]:
    """The same, divided among the module paths of the nodes; a weight belongs to the first that reads it."""
    parts: dict[str, Work] = {}
    for node, work in least_work(graph, sizes).items():
        parts[node.loc.module] = parts.get(node.loc.module, Work()) + work
    return {module: Floor(work, device) for module, work in parts.items()}


def node_work(node: Node, sizes: Bindings) -> Work:
    """One node as it stands; a fusion by its boundary, its caches and the rows it looks up."""
    counter, known = _Counter(sizes), dict[Value, _Constant]()
    for value in node.inputs:
        if value is not None and is_constant(value):
            for part in between([value], ()):
                counter.node(part, known)
    inside = counter.node(node, known)
    return inside + Work(sum(counter.bytes(value.type) for value in _activations(node, known)))


def least_work(graph: Graph, sizes: Bindings) -> dict[Node, Work]:
    """What every node adds to the floor of its graph; see the module's docstring."""
    counter, known, unread = _Counter(sizes), dict[Value, _Constant](), set(graph.inputs)
    parts = {}
    for node in graph.nodes:
        first = {v for v in node.inputs if v is not None} & unread
        ends = {v for v in node.outputs if graph.is_output(v)}
        unread -= first
        parts[node] = counter.node(node, known) + Work(sum(counter.bytes(v.type) for v in (*first, *ends)))
    return parts


def _total(works: Iterable[Work]) -> Work:
    return sum(works, Work())


def _activations(node: Node, known: Mapping[Value, _Constant]) -> list[Value]:
    """What a node reads and writes besides constants; nothing for a view."""
    operands, results = (
        tuple(v.type if v is not None else None for v in node.inputs),
        tuple(v.type for v in node.outputs),
    )
    if _op_bytes(node.op.name, operands, results) == 0 or all(v in known for v in node.outputs):
        return []
    return [*{v for v in node.inputs if v is not None and _constant(v, known) is None}, *node.outputs]


@dataclass(frozen=True)
class _Constant:
    """A value computed from weights alone: from which, and the type in which the smallest form of it is stored."""

    weights: frozenset[Value]
    type: Type


class _Counter:
    """Counts nodes in order. Remembers the weights that were read in full, to count each once."""

    def __init__(self, sizes: Bindings) -> None:
        self.sizes = sizes
        self.read: set[Value] = set()

    def bytes(self, type: Type) -> int:
        """Bytes of a tensor; a KV state is counted by the nodes that read it."""
        return evaluate(_tensor_bytes(type), self.sizes) if isinstance(type, TensorType) else 0

    def node(self, node: Node, known: dict[Value, _Constant]) -> Work:
        """Operations of a node, and what it moves besides activations. Adds results that are constant to `known`."""
        inputs = [_constant(v, known) for v in node.inputs]
        if node.op.pure and _all_constant(node, inputs):
            known[node.output] = _folded(node, inputs)
            return Work()
        body = node.attrs.get("body")
        if isinstance(body, Graph):
            inner = {value: constant for value, constant in zip(body.inputs, inputs, strict=True) if constant}
            return _total(self.node(part, inner) for part in body.nodes)
        types = [c.type if c else v.type if v is not None else None for v, c in zip(node.inputs, inputs)]
        weights = frozenset[Value]().union(*(c.weights for c in inputs if c))
        return Work(self._outside(node, types, inputs, weights), self._flops(node, types))

    def _outside(
        self, node: Node, types: list[Type | None], inputs: list[_Constant | None], weights: frozenset[Value]
    ) -> int:
        """What the op says it moves, less its activations and the weights that were read before."""
        moved = evaluate(_op_bytes(node.op.name, tuple(types), tuple(v.type for v in node.outputs)), self.sizes)
        flowing = [v for v, c in zip(node.inputs, inputs) if v is not None and c is None]
        moved -= sum(self.bytes(v.type) for v in (*flowing, *node.outputs))
        moved = max(moved - sum(self.bytes(w.type) for w in weights & self.read), 0)
        if moved >= sum(self.bytes(w.type) for w in weights - self.read):
            self.read |= weights
        return moved

    def _flops(self, node: Node, types: list[Type | None]) -> dict[str, int]:
        plain = tuple(v.type if v is not None else None for v in node.inputs)
        count = evaluate(_op_flops(node.op.name, plain, tuple(node.attrs.items())), self.sizes)
        return {_computed_in(types): count} if count else {}


# Equal layers ask the same questions, and arithmetic on named sizes is slow.


@lru_cache(4096)
def _tensor_bytes(type: TensorType) -> Dim:
    return tensor_bytes(type)


@lru_cache(4096)
def _op_bytes(op: str, operands: tuple[Type | None, ...], results: tuple[Type, ...]) -> Dim:
    return lookup(op).bytes(operands, results)


@lru_cache(4096)
def _op_flops(op: str, operands: tuple[Type | None, ...], attrs: tuple[tuple[str, Attr], ...]) -> Dim:
    return lookup(op).flops(*operands, **dict(attrs))


def _constant(value: Value | None, known: Mapping[Value, _Constant]) -> _Constant | None:
    if value is None:
        return None
    if value in known:
        return known[value]
    return _Constant(frozenset({value}), value.type) if isinstance(value, Weight) or _is_packed(value.type) else None


def _all_constant(node: Node, inputs: list[_Constant | None]) -> bool:
    free = [v for v, c in zip(node.inputs, inputs) if v is not None and c is None and not isinstance(v, Literal)]
    return any(inputs) and not free and len(node.outputs) == 1 and isinstance(node.output.type, TensorType)


def _folded(node: Node, inputs: list[_Constant | None]) -> _Constant:
    """A result that is constant, in the smaller of its own type and that of the one weight it comes from."""
    sources = [c for c in inputs if c]
    type = node.output.tensor
    if len(sources) == 1 and isinstance(sources[0].type, TensorType) and sources[0].type.elements == type.elements:
        stored = sources[0].type.dtype
        type = replace(type, dtype=stored) if item_bytes(stored) < item_bytes(type.dtype) else type
    return _Constant(frozenset[Value]().union(*(c.weights for c in sources)), type)


def _is_packed(type: Type) -> bool:
    return isinstance(type, TensorType) and is_packed(type.dtype)


def _computed_in(types: list[Type | None]) -> str:
    dtypes = [type.dtype for type in types if type is not None]
    if any(map(is_packed, dtypes)):
        return "i8"
    narrow = [dtype for dtype in dtypes if (is_float(dtype) or dtype == "i8") and item_bytes(dtype)]
    return min(narrow, key=item_bytes, default="f32")
