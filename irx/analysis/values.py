"""Values that no input can change: they depend on sizes, literals and weights only.

Masks, positions and position tables are such values, in many spellings. What they are is found by evaluating them at
several sizes and looking, which needs no knowledge of the spelling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from irx.analysis.structure import between, extract
from irx.errors import IRXError
from irx.ir.dims import SymDim, names
from irx.ir.graph import Graph, Literal, Node, Value, Weight
from irx.ir.opdef import Array, Attr
from irx.ir.types import KVType, TensorType
from irx.ir.weights import Weights


class ValueFree:
    """The values that depend on sizes, literals and weights only: `value in free`. Remembers what it has seen."""

    def __init__(self) -> None:
        self._known: dict[Value, bool] = {}

    def __contains__(self, value: Value) -> bool:
        if isinstance(value, Weight | Literal):
            return True
        for node in between([value], self._known):
            free = node.op.pure and all(v is None or self._of(v) for v in node.inputs)
            self._known.update((v, free) for v in node.outputs)
        return self._of(value)

    def _of(self, value: Value) -> bool:
        return isinstance(value, Weight | Literal) or self._known.get(value, False)


def dependent(graph: Graph, sources: Iterable[Value]) -> set[Value]:
    """All values of the graph that are computed from one of `sources`, those included."""
    found = set(sources)
    for node in graph.nodes:
        if any(v in found for v in node.inputs):
            found.update(node.outputs)
    return found


def inputs_of(values: Sequence[Value]) -> list[Value]:
    """The graph inputs that `values` are computed from (weights are not inputs)."""
    read = (v for node in between(values, ()) for v in node.inputs)
    found = dict.fromkeys([*read, *values])
    return [v for v in found if v is not None and v.producer is None and not isinstance(v, Weight | Literal)]


def integers_in(value: Value) -> set[int]:
    """All whole numbers that occur as literals or in attributes of the nodes that compute `value`."""
    found: set[int] = set()
    for node in between([value], ()):
        found.update(_integers([v.value for v in node.inputs if isinstance(v, Literal)]))
        found.update(_integers(node.attrs.values()))
    return found


def _integers(items: Iterable[Attr]) -> Iterator[int]:
    for item in items:
        if isinstance(item, tuple):
            yield from _integers(item)
        elif isinstance(item, float) and item.is_integer() and abs(item) < 2**31:
            yield int(item)
        elif isinstance(item, int) and not isinstance(item, bool):
            yield item
        elif isinstance(item, SymDim):
            yield from (abs(int(number)) for number in item.expr.atoms() if number.is_Integer)


def size_names(value: Value) -> set[str]:
    """The named sizes that `value`'s shape, or the attributes and literals it is computed with, depend on."""
    found = _names([value.type])
    for node in between([value], ()):
        found |= _names(node.attrs.values())
        found |= _names(v.value for v in node.inputs if isinstance(v, Literal))
    return found


def node_names(node: Node) -> set[str]:
    """The named sizes in the attributes, literal operands and result types of one node."""
    literals = [v.value for v in node.inputs if isinstance(v, Literal)]
    return _names([*node.attrs.values(), *literals, *(v.type for v in node.outputs)])


def _names(items: Iterable[Any]) -> set[str]:
    found: set[str] = set()
    for item in items:
        if isinstance(item, SymDim):
            found |= names(item)
        elif isinstance(item, tuple):
            found |= _names(item)
        elif isinstance(item, TensorType):
            found |= _names(item.shape)
        elif isinstance(item, KVType) and item.capacity is not None:
            found |= names(item.capacity)
    return found


FAILS = (IRXError, IndexError, ValueError, ArithmeticError)
"""What evaluating a value raises where a size is too large for a table of the model."""


def largest_working(compute: Callable[[int], object], low: int, high: int) -> int:
    """The largest size from `low`, which works, to `high` at which `compute` does not raise."""
    while low < high:
        middle = (low + high + 1) // 2
        try:
            compute(middle)
            low = middle
        except FAILS:
            high = middle - 1
    return low


@dataclass(frozen=True)
class Prober:
    """Evaluates value-free values at chosen sizes, on the oracle."""

    weights: Weights
    evaluate: Callable[[Graph, Mapping[str, Any], Mapping[str, int]], list[Array]]

    def arrays(self, values: Sequence[Value], sizes: Mapping[str, int]) -> list[Array]:
        """The arrays of `values` where the named sizes are as given. Raises what their ops raise (IndexError, ...)."""
        names: dict[Value, str] = {}
        part = extract(values, (), names)
        inputs = {name: self.weights.array(v) for v, name in names.items() if isinstance(v, Weight)}
        return self.evaluate(part, inputs, sizes)

    def array(self, value: Value, sizes: Mapping[str, int]) -> Array:
        """The array of one value; see `arrays`."""
        return self.arrays([value], sizes)[0]
