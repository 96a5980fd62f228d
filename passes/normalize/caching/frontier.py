"""What a value-free value with the sequence axis is: the same everywhere, a counting of positions, or a table of them.

`forward` computes positions, rotary angles and position embeddings from the length alone, as if every sequence began at
0. In a graph with a cache they depend on where a token stands. Which values do is found by evaluating them at several
lengths, the longest one included: row s must not change when the sequence grows behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from irx.analysis.values import FAILS, Prober, ValueFree, integers_in, largest_working, size_names
from irx.ir.dims import Dim, Range, SymDim, names
from irx.ir.graph import Node, Value
from irx.ir.opdef import Array
from irx.passes.normalize.caching.refusal import NotCacheable

_SMALL = (5, 12, 40)
_LARGEST = 1 << 26
"""Elements of a table above which it is not evaluated: half a gigabyte in float64."""


@dataclass(frozen=True)
class Constant:
    """The same for every token and every length."""


@dataclass(frozen=True)
class Counting:
    """Row s along `axis` is start + s everywhere."""

    axis: int
    start: int


@dataclass(frozen=True)
class Lookup:
    """Row s along `axis` is row start + s of `table`, a value [rows, channels] but for axes of size 1."""

    axis: int
    start: int
    table: Value


@dataclass(frozen=True)
class Rows:
    """Row s along `axis` is rows[s]; the axes behind the first are those of the value, without `axis` and the batch."""

    axis: int
    rows: Array = field(compare=False)


Kind: TypeAlias = Constant | Counting | Lookup | Rows


@dataclass
class Frontier:
    """Classifies the value-free values of one graph. `longest` shrinks to what the model's own tables can hold."""

    prober: Prober
    free: ValueFree
    batch: Dim
    length: SymDim
    sizes: Mapping[str, Range]
    longest: int
    _known: dict[Value, Kind] = field(default_factory=dict)

    def kind(self, value: Value) -> Kind:
        """What `value` is. Raises NotCacheable with the reason where it is none of these."""
        if value not in self._known:
            self._known[value] = self._classify(value)
        return self._known[value]

    def _classify(self, value: Value) -> Kind:
        if self.length.text not in size_names(value):
            return Constant()
        axes = [axis for axis, dim in enumerate(value.shape) if dim == self.length]
        others = [dim for dim in value.shape if dim != self.length and self.length.text in names(dim)]
        if others:
            return self._bookkeeping(value, others[0])
        if len(axes) != 1:
            return self._sizeless(value)
        return self._lookup(value, axes[0]) or self._counted(value, axes[0])

    def _lookup(self, value: Value, axis: int) -> Kind | None:
        """Position tables as models spell them; so no copy of the table is made."""
        node = self._source(value)
        if node is None or node.op.name not in ("embedding", "take", "slice"):
            return None
        table, start = (_sliced if node.op.name == "slice" else self._indexed)(node)
        if table is None or start is None or table not in self.free or self.length.text in size_names(table):
            return None
        rows, *channels = [dim for dim in table.shape if dim != 1] or [1]
        others = [dim for i, dim in enumerate(value.shape) if i != axis and dim not in (1, self.batch)]
        if channels != others or len(channels) > 1 or not isinstance(rows, int):
            return None
        self.longest = min(self.longest, rows - start)
        return Lookup(axis, start, table)

    def _source(self, value: Value) -> Node | None:
        """The node that computes `value` before axes of size 1 came or went."""
        node = value.producer
        while node is not None and node.op.name in ("reshape", "expand"):
            inner = node.inputs[0]
            if inner is None or len(self._wide(inner)) != len(self._wide(node.output)):
                return None
            node = inner.producer
        return node

    def _wide(self, value: Value) -> list[Dim]:
        return [dim for dim in value.shape if dim not in (1, self.batch)]

    def _indexed(self, node: Node) -> tuple[Value | None, int | None]:
        table, index = (node.inputs[1], node.inputs[0]) if node.op.name == "embedding" else node.inputs[:2]
        if index is None or index not in self.free or (node.op.name == "take" and node.attr("axis") != 0):
            return None, None
        if table is None or len(table.shape) != 2:
            return None, None
        try:
            kind = self.kind(index)
        except NotCacheable:  # the looked-up rows may be cacheable all the same, in another shape
            return None, None
        return (table, kind.start) if isinstance(kind, Counting) else (None, None)

    def _counted(self, value: Value, axis: int) -> Kind:
        series = self._series(value, axis)
        lengths = sorted(series)
        full = series[lengths[-1]]
        for length in lengths:
            if not np.array_equal(series[length], full[:length], equal_nan=True):
                raise NotCacheable(
                    f"%{value.name} depends on the length of the sequence, not only on the place in it", value.producer
                )
        if (full == full[:1]).all():
            return Constant()
        start = full.reshape(len(full), -1)[0, 0]
        steps = start + np.arange(len(full)).reshape(-1, *[1] * (full.ndim - 1))
        if float(start).is_integer() and np.array_equal(np.broadcast_to(steps, full.shape), full):
            return Counting(axis, int(start))
        return Rows(axis, full)

    def _series(self, value: Value, axis: int) -> dict[int, Array]:
        """The value at several lengths, with `axis` in front and without the batch."""
        found: dict[int, Array] = {}
        high = self.sizes.get(self.length.text, Range()).high
        self.longest = self.longest if high is None else min(self.longest, high)
        wanted = {*_SMALL, *(c + 7 for c in integers_in(value) if c > 1)}
        for length in sorted(n for n in wanted if n < self.longest):
            found[length] = self._at(value, axis, length)
        last = self._fitting(value, axis, max(found, default=1))
        found[self.longest] = last
        return {length: array for length, array in found.items() if length <= self.longest}

    def _fitting(self, value: Value, axis: int, works: int) -> Array:
        """The value at the longest length at which it can be evaluated, which `longest` becomes."""
        self.shorten(lambda length: self._at(value, axis, length), works)
        return self._at(value, axis, self.longest)

    def shorten(self, compute: Callable[[int], object], works: int = 1) -> None:
        """Lower `longest` to the longest length at which `compute` does not raise."""
        try:
            compute(self.longest)
        except FAILS:
            self.longest = largest_working(compute, works, self.longest - 1)

    def _at(self, value: Value, axis: int, length: int) -> Array:
        width = 1
        for dim in value.shape:
            width *= dim if isinstance(dim, int) else 2
        if width * length > _LARGEST:
            raise NotCacheable(f"%{value.name} would be a table of {width * length} elements", value.producer)
        array = np.asarray(self.prober.array(value, self.bindings(value, length)))
        if array.shape[axis] != length:
            raise ValueError(f"a table ends before position {length}")
        array = np.moveaxis(array, axis, 0)
        shape = [dim for i, dim in enumerate(value.shape) if i != axis]
        batches = [i + 1 for i, dim in enumerate(shape) if dim == self.batch and not isinstance(dim, int)]
        for place in reversed(batches):
            first = np.take(array, 0, axis=place)
            if not np.array_equal(array, np.broadcast_to(np.expand_dims(first, place), array.shape), equal_nan=True):
                raise NotCacheable(f"%{value.name} differs between rows of the batch", value.producer)
            array = first
        return array

    def bindings(self, value: Value, length: int) -> dict[str, int]:
        """Sizes to evaluate `value` at: the given length, small numbers for all others."""
        others = sorted(size_names(value) - {self.length.text})
        values = {name: _within(2 + i, self.sizes.get(name, Range())) for i, name in enumerate(others)}
        return values | {self.length.text: length}

    def _sizeless(self, value: Value) -> Kind:
        """No sequence axis, or several: fine where every element is the same at every length."""
        arrays = [np.asarray(self.prober.array(value, self.bindings(value, n))) for n in self._lengths(value)]
        same = all((a == a.reshape(-1)[:1]).all() and a.reshape(-1)[0] == arrays[0].reshape(-1)[0] for a in arrays)
        if value.shape and self.length in value.shape and same:
            return Constant()
        if self.length not in value.shape and all(np.array_equal(a, arrays[0], equal_nan=True) for a in arrays):
            return Constant()
        raise NotCacheable(f"%{value.name}: {value.type} depends on the length of the sequence", value.producer)

    def _lengths(self, value: Value) -> list[int]:
        range = self.sizes.get(self.length.text, Range())
        wanted = {*_SMALL, *(c + 7 for c in integers_in(value) if 1 < c < 512)}
        return sorted({_within(n, range) for n in wanted})

    def _bookkeeping(self, value: Value, dim: Dim) -> Kind:
        """Numbers of flattened tokens, as a mixture of experts sorts by: they restart with every graph, unless they
        repeat for every row of the batch, which makes them positions."""
        array = np.moveaxis(self.prober.array(value, self.bindings(value, 5)), value.shape.index(dim), 0)
        if (array == array.reshape(-1)[:1]).all():
            return Constant()
        if len(array) % 5:
            raise NotCacheable(f"%{value.name}: {value.type} depends on the length of the sequence", value.producer)
        rows = array.reshape(-1, 5, array.size // len(array))
        if len(rows) > 1 and (rows == rows[:1]).all():
            raise NotCacheable(f"%{value.name}: {value.type} repeats positions over flattened tokens", value.producer)
        return Constant()


def _sliced(node: Node) -> tuple[Value | None, int | None]:
    """The first rows of a table: it is cut along its first axis that is not 1."""
    start, table = node.attr("start"), node.inputs[0]
    if table is None or node.attr("step") != 1 or not isinstance(start, int) or start < 0:
        return None, None
    first = next((axis for axis, dim in enumerate(table.shape) if dim != 1), None)
    return (table, start) if node.attr("axis") == first else (None, None)


def _within(size: int, range: Range) -> int:
    return max(range.low, size if range.high is None else min(size, range.high))
