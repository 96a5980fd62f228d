"""Products with constant weights, and the new weights that passes make of theirs.

A pass first spells what it wants with nodes over the old weights, so that a site can be checked on random values; then
`Folder` turns these nodes into derived weights, one for all graphs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from irx.analysis.structure import attributes
from irx.ir.graph import Graph, Literal, Node, Value, Weight
from irx.ir.spelling import format_operand
from irx.ir.weights import Weights
from irx.rewrite.check import LIMIT, Check
from irx.rewrite.cleanup import erase_unused
from irx.rewrite.recorder import Recorder
from irx.rewrite.report import Fuel, NearMiss, Report, Site

UNPACKING = ("dequantize", "cast")


@dataclass(frozen=True)
class Projection:
    """x @ weight.T + bias; `unpacking` is the node that unpacks or casts a weight that is stored otherwise."""

    node: Node
    x: Value
    weight: Weight
    bias: Weight | None
    unpacking: Node | None

    @property
    def form(self) -> tuple[str, str]:
        """How the weight is stored, and in which dtype the product reads it."""
        return self.weight.dtype, self.node.output.dtype

    @property
    def width(self) -> int:
        """How many columns the product has."""
        width = self.weight.shape[0]
        assert isinstance(width, int), f"the rows of {self.weight!r} are not known"
        return width

    @property
    def leaves(self) -> list[Value]:
        """What the product is computed from."""
        return [value for value in (self.x, self.weight, self.bias) if value is not None]

    def matrix(self, b: Recorder, weight: Value) -> Value:
        """`weight`, unpacked as this projection's is."""
        return weight if self.unpacking is None else b(self.unpacking.op.name, weight, **self.unpacking.attrs)


def projection(node: Node | None) -> Projection | None:
    """The projection that a `linear` is, None where its weights are no plain weights."""
    if node is None or node.op.name != "linear":
        return None
    x, matrix, bias = node.operand("x"), node.operand("weight"), node.operand("bias")
    unpacking = matrix.producer if matrix is not None else None
    weight = matrix
    if unpacking is not None and unpacking.op.name in UNPACKING:
        weight = unpacking.inputs[0]
    if x is None or not isinstance(weight, Weight) or not (bias is None or isinstance(bias, Weight)):
        return None
    return Projection(node, x, weight, bias, unpacking)


@dataclass
class Folder:
    """Derived weights by what they are made of."""

    weights: Weights
    _known: dict[tuple[str, ...], Weight] = field(default_factory=dict)

    def fold(self, graph: Graph, node: Node, name: str) -> None:
        """A weight in place of a node that reads weights and literals only."""
        operands = [v for v in node.inputs if isinstance(v, Weight | Literal)]
        assert len(operands) == len(node.inputs), f"{node!r} reads more than weights"
        key = (node.op.name, attributes(node), *map(format_operand, operands))
        if key not in self._known:
            self._known[key] = self.weights.derive(name, node.op.name, operands, **node.attrs)
        graph.replace(node.output, self._known[key])
        graph.erase(node)


@dataclass
class Rewrites:
    """Replaces values by new ones that compute the same, where the check says so, and keeps the books for a pass."""

    check: Check
    fuel: Fuel
    folder: Folder
    report: Report = field(default_factory=Report)

    def replace(
        self, b: Recorder, old: Sequence[Value], new: Sequence[Value], leaves: Sequence[Value],
        names: Mapping[Value, str], what: str,
    ) -> bool:  # fmt: skip
        """Put `new` in the place of `old`; nodes that the builder made of weights alone become weights of these names.

        False, and all as it was, where the check fails or no fuel is left.
        """
        graph, node = b.graph, _producer(old[0])
        error = self.check.error(old, new, leaves)
        if error is not None and error > LIMIT:
            self.miss(graph, node, f"check failed: error {error:.1e} is above {LIMIT:.0e}")
        if (error is not None and error > LIMIT) or not self.fuel.take():
            b.undo()
            return False
        self.report.sites.append(Site(graph.name, node.loc, what, error))
        for before, after in zip(old, new, strict=True):
            graph.replace(before, after)
        for made in b.made:
            if made.op.name not in UNPACKING and all(isinstance(v, Weight | Literal) for v in made.inputs):
                self.folder.fold(graph, made, names[made.output])
        erase_unused(graph, [_producer(value) for value in old])
        return True

    def miss(self, graph: Graph, node: Node, reason: str) -> None:
        """Report a place that was almost rewritten."""
        self.report.near_misses.append(NearMiss(graph.name, node.loc, reason))


def _producer(value: Value) -> Node:
    assert value.producer is not None, f"{value!r} is computed by no node"
    return value.producer


def joined_name(names: Sequence[str]) -> str:
    """One name for several weights: what they share, and between that where they differ.

    >>> joined_name(["layers.0.q.weight", "layers.0.k.weight"])
    'layers.0.q_k.weight'
    """
    parts = [name.split(".") for name in names]
    shortest = min(map(len, parts))
    head = next((i for i in range(shortest) if len({p[i] for p in parts}) > 1), shortest - 1)
    tail = next((i for i in range(shortest - head) if len({p[-1 - i] for p in parts}) > 1), 0)
    middle = "_".join(".".join(p[head : len(p) - tail]) for p in parts)
    return ".".join([*parts[0][:head], middle, *(parts[0][len(parts[0]) - tail :])])
