"""Indexing with tensors: gathers, scatters, and writes into slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from irx.frontends.torch_export.site import Site
from irx.frontends.torch_export.tables import Untranslatable, rule
from irx.ir.dims import Dim, is_nonnegative, maximum, product
from irx.ir.graph import Literal, Operand, Value
from irx.ops.shapes import slice_length

_KEEPS_SIGN = ("reshape", "expand", "cast", "permute", "slice", "concat", "add", "mul")


@rule("aten.index.Tensor")
def index(site: Site, self: Value, indices: Sequence[Value | None]) -> Value:
    """Index tensors broadcast against each other and replace the axes they index."""
    axes = [axis for axis, x in enumerate(indices) if x is not None]
    given = [x for x in indices if x is not None]
    if any(x.dtype in ("bool", "u8") for x in given):
        raise Untranslatable("a selection whose size depends on values")
    if axes != list(range(axes[0], axes[0] + len(axes))):
        raise Untranslatable("indices of axes that are not neighbours")
    sizes = [self.shape[axis] for axis in axes]
    if len(given) == 1:
        return site("take", self, given[0], axis=axes[0])
    flat = (*self.shape[: axes[0]], product(sizes), *self.shape[axes[-1] + 1 :])
    return site("take", site.reshape(self, flat), _linear_index(site, given, sizes), axis=axes[0])


def _linear_index(site: Site, indices: Sequence[Value], sizes: Sequence[Dim]) -> Value:
    """One index into the joined axes: ((i * size1) + j) * size2 + k."""
    result = _from_start(site, indices[0], sizes[0])
    for x, size in zip(indices[1:], sizes[1:], strict=True):
        result = site("add", site("mul", result, size), _from_start(site, x, size))
    return result


def _from_start(site: Site, x: Value, size: Dim) -> Value:
    """Positions counted from the start; negative ones count from the end, which a joined axis would misread."""
    if _is_nonnegative(x):
        return x
    return site("where", site("lt", x, 0), site("add", x, size), x)


def _is_nonnegative(x: Value) -> bool:
    """True where it is plain from how `x` was made that it holds no negative number."""
    if isinstance(x, Literal):
        return not isinstance(x.value, float) and is_nonnegative(x.value)
    node = x.producer
    if node is None:
        return False
    name = node.op.name
    if name == "arange":
        start, step = node.attr("start"), node.attr("step")
        return isinstance(start, int) and start >= 0 and isinstance(step, int) and step > 0
    if name == "topk":
        return x is node.outputs[1]
    if name in ("take", "gather"):
        return node.inputs[0] is not None and _is_nonnegative(node.inputs[0])
    if name in _KEEPS_SIGN:
        return all(_is_nonnegative(operand) for operand in node.inputs if operand is not None)
    return name == "argmax"


@rule("aten.index_select.default")
def index_select(site: Site, self: Value, dim: int, index: Value) -> Value:
    return site("take", self, site.reshape(index, (index.tensor.elements,)), axis=site.axis(self, dim))


@rule("aten.gather.default")
def gather(site: Site, self: Value, dim: int, index: Value, sparse_grad: bool) -> Value:
    return site("gather", self, index, axis=site.axis(self, dim))


@rule("aten.take_along_dim.default")
def take_along(site: Site, self: Value, indices: Value, dim: int | None) -> Value:
    if dim is None:
        raise Untranslatable("take_along_dim over all elements")
    axis = site.axis(self, dim)
    shape = list(site.result.shape)
    shape[axis] = self.shape[axis]
    return site("gather", site.expand(self, shape), site.expand(indices, site.result.shape), axis=axis)


@rule("aten.scatter.src")
def scatter(site: Site, self: Value, dim: int, index: Value, src: Value) -> Value:
    source = src
    for axis, size in enumerate(index.shape):
        source = site.slice(source, axis, 0, size)  # torch reads no more of it than the index covers
    return site("scatter", self, index, source, axis=site.axis(self, dim))


@rule("aten.scatter.value")
def scatter_value(site: Site, self: Value, dim: int, index: Value, value: Operand) -> Value:
    return site("scatter", self, index, value, axis=site.axis(self, dim))


@rule("aten.index_copy.default")
def index_copy(site: Site, self: Value, dim: int, index: Value, source: Value) -> Value:
    return _write_rows(site, self, site.axis(self, dim), index, source)


@rule("aten.index_put.default")
def index_put(site: Site, self: Value, indices: Sequence[Value | None], values: Value, accumulate: bool) -> Value:
    axes = [axis for axis, x in enumerate(indices) if x is not None]
    places = indices[axes[0]]
    if accumulate or len(axes) != 1 or places is None or len(places.shape) != 1:
        raise Untranslatable("a write that adds up, or at pairs of indices")
    if places.dtype == "bool":
        return _write_where(site, self, axes[0], places, values)
    axis = axes[0]
    shape = (*self.shape[:axis], places.shape[0], *self.shape[axis + 1 :])
    return _write_rows(site, self, axis, places, site.expand(site.cast(values, self.dtype), shape))


def _write_where(site: Site, x: Value, axis: int, places: Value, values: Value) -> Value:
    if values.tensor.elements != 1:
        raise Untranslatable("a write whose size depends on values")
    shape = (places.shape[0], *[1] * (len(x.shape) - axis - 1))
    return site("where", site.reshape(places, shape), site.reshape(site.cast(values, x.dtype), ()), x)


def _write_rows(site: Site, x: Value, axis: int, index: Value, source: Value) -> Value:
    """`x` with the slices at `index` along an axis replaced: a scatter whose index is the same in all other axes."""
    column = site.reshape(index, (index.tensor.elements, *[1] * (len(x.shape) - axis - 1)))
    return site("scatter", x, site.expand(column, source.shape), source, axis=axis)


@rule("aten.slice_scatter.default")
def slice_scatter(site: Site, self: Value, src: Value, dim: int, start: Any, end: Any, step: int) -> Value:
    axis = site.axis(self, dim)
    first, last = written_bounds(self, src, axis, start, end, step)
    # The slice is cut off at the size, so its length may read Min(3, S) - 1 where torch knows that it is 2.
    shape = list(self.shape)
    shape[axis] = slice_length(shape[axis], first, last, step)
    source = site.cast(src, self.dtype)
    source = site.reshape(source, shape) if len(source.shape) == len(shape) else source
    return site("scatter_slice", self, source, axis=axis, start=first, stop=last, step=step)


def written_bounds(x: Value, source: Value, axis: int, start: Any, end: Any, step: int) -> tuple[Dim, Dim]:
    """Start and stop of the slice of `x` that `source` has the size of."""
    size = x.shape[axis]
    first = 0 if start is None else start
    if isinstance(first, int) and first < 0 or not isinstance(first, int) and not is_nonnegative(first):
        first = maximum(0, size + first)
    length = source.shape[axis] if axis < len(source.shape) else 1
    return first, first + (length - 1) * step + 1 if step != 1 else first + length


@rule("aten.select_scatter.default")
def select_scatter(site: Site, self: Value, src: Value, dim: int, index: Dim) -> Value:
    axis = site.axis(self, dim)
    position = self.shape[axis] + index if isinstance(index, int) and index < 0 else index
    source = site.cast(site.unsqueeze(src, axis), self.dtype)
    return site("scatter_slice", self, source, axis=axis, start=position, stop=position + 1)
