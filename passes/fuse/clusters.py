"""Which of the nodes that are left over belong together: those that share rows, taken by the bytes that this saves.

A cluster works on one domain: the shape of its largest values. Elementwise ops have the domain of their result, norms
and reductions along the last axis that of their operand. Two clusters fit together when their domains are equal, or
differ only by what is broadcast along rows: fewer rows (an operand that all share), or one value a row (a reduction).
Views bring values into a domain: they fit to what reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from irx.ir.dims import Dim, evaluate
from irx.ir.graph import Graph, Node, Value
from irx.ir.opdef import tensor_bytes
from irx.ir.types import TensorType
from irx.rewrite.outline import convex

VIEWS = frozenset({"reshape", "permute", "expand", "slice", "concat", "flip", "full", "arange"})
ROW_WISE = frozenset({"rms_norm", "layer_norm"})
REDUCTIONS = frozenset({"sum", "mean", "amax", "amin", "any", "all", "logsumexp"})
ALONG = frozenset({"softmax", "log_softmax", "argmax"})
_SMALLEST = 2  # nodes of a region that are not free, as reshapes are


@dataclass(eq=False)
class Cluster:
    """Nodes that become one region, and the shape they work on."""

    nodes: set[Node]
    domain: tuple[Dim, ...]

    @property
    def is_view(self) -> bool:
        """True where nothing is computed."""
        return all(node.op.name in VIEWS for node in self.nodes)


def domain(node: Node) -> tuple[Dim, ...] | None:
    """The shape that a node works on, None for one that cannot be in such a region."""
    if len(node.outputs) != 1 or not isinstance(node.output.type, TensorType):
        return None
    operand = node.inputs[0] if node.inputs else None
    source = () if operand is None else operand.shape
    last = len(source) - 1
    name = node.op.name
    if node.op.elementwise or name in VIEWS or name in ROW_WISE:
        return node.output.shape
    if name in REDUCTIONS and node.attr("axes") in ((last,), (-1,)):
        return source
    if name in ALONG and node.attr("axis") in (last, -1):
        return source
    return None


def joined(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> tuple[Dim, ...] | None:
    """The domain of two clusters together, None where they do not fit."""
    small, large = sorted((a, b), key=len)
    small = (1,) * (len(large) - len(small)) + small
    if small == large:
        return large
    if all(x in (1, y) for x, y in zip(small, large, strict=True)):
        return large
    if len(a) == len(b) and all(y in (1, x) for x, y in zip(small, large, strict=True)):
        return small
    reduced = (*small[1:], 1)  # a reduction that dropped its axis
    return large if len(a) != len(b) and reduced == (*large[:-1], 1) else None


@dataclass
class Clustering:
    """Clusters of one graph. `sizes` are typical values of its named sizes, to weigh bytes by."""

    graph: Graph
    sizes: Mapping[str, int]
    _of: dict[Node, Cluster] = field(default_factory=dict)

    def run(self) -> list[set[Node]]:
        """The regions, each of at least two nodes."""
        for node in self.graph.nodes:
            shape = domain(node)
            if shape is not None:
                self._of[node] = Cluster({node}, shape)
        for value in sorted(self._candidates(), key=self.saved, reverse=True):
            self._merge(value)
        clusters = dict.fromkeys(self._of.values())
        return [c.nodes for c in clusters if sum(n.op.name != "reshape" for n in c.nodes) >= _SMALLEST]

    def saved(self, value: Value) -> int:
        """The bytes that are not moved when `value` stays inside of a region: written once, read by every reader."""
        return evaluate(tensor_bytes(value.tensor), self.sizes) * (1 + len(self.graph.users(value)))

    def _candidates(self) -> list[Value]:
        made = (node.output for node in self._of)
        return [v for v in made if any(user in self._of for user in self.graph.users(v))]

    def _merge(self, value: Value) -> None:
        """Put what makes a value together with those of its readers that fit."""
        producer = value.producer
        for reader in self.graph.users(value):
            if producer is None or reader not in self._of:
                continue
            first, second = self._of[producer], self._of[reader]
            if first is not second and self._fits(producer, reader):
                self._join(first, second)

    def _fits(self, producer: Node, reader: Node) -> bool:
        first, second = self._of[producer], self._of[reader]
        if reader.op.name in VIEWS and reader.op.name != "expand" and not first.is_view:
            return False  # what is computed has the form that the region works on, and is cut or turned afterwards
        return _shape(first, second) is not None and convex(self.graph, first.nodes | second.nodes)

    def _join(self, first: Cluster, second: Cluster) -> None:
        shape = _shape(first, second)
        assert shape is not None, "clusters that do not fit are not joined"
        first.nodes |= second.nodes
        first.domain = shape
        self._of.update(dict.fromkeys(second.nodes, first))


def _shape(first: Cluster, second: Cluster) -> tuple[Dim, ...] | None:
    """The domain of a cluster and one that reads it; None where they do not fit. Views may be chained as they like."""
    return second.domain if first.is_view and second.is_view else joined(first.domain, second.domain)
