"""Operators that move elements without changing them: views, permutations, slices, joins. IRX has no strides: a view,
a reshape and an unsafe view are one thing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from irx.frontends.torch_export.site import Site
from irx.frontends.torch_export.tables import Untranslatable, rule
from irx.ir.dims import Dim, SymDim, is_nonnegative, minimum
from irx.ir.graph import Value
from irx.ir.types import promote

_END = 2**62  # torch writes "up to the end" as the largest int64


@rule("aten.view.default", "aten._unsafe_view.default")
def view(site: Site, self: Value, size: Any) -> Value:
    return site.reshape(self, site.result.shape)


@rule("aten.reshape.default")
def reshape(site: Site, self: Value, shape: Any) -> Value:
    return site.reshape(self, site.result.shape)


@rule("aten.view_as.default", "aten.reshape_as.default")
def reshape_as(site: Site, self: Value, other: Value) -> Value:
    return site.reshape(self, site.result.shape)


@rule("aten.flatten.using_ints")
def flatten(site: Site, self: Value, start_dim: int, end_dim: int) -> Value:
    return site.reshape(self, site.result.shape)


@rule("aten.unflatten.int")
def unflatten(site: Site, self: Value, dim: int, sizes: Any) -> Value:
    return site.reshape(self, site.result.shape)


@rule("aten.unsqueeze.default", "aten.squeeze.dim")
def unsqueeze(site: Site, self: Value, dim: int) -> Value:
    return site.reshape(self, site.result.shape)


@rule("aten.squeeze.dims")
def squeeze_axes(site: Site, self: Value, dim: Any) -> Value:
    return site.reshape(self, site.result.shape)


@rule("aten.squeeze.default", "aten.ravel.default")
def squeeze(site: Site, self: Value) -> Value:
    return site.reshape(self, site.result.shape)


@rule("aten.transpose.int", "aten.swapaxes.default", "aten.swapdims.default")
def transpose(site: Site, self: Value, **pair: int) -> Value:
    a, b = (site.axis(self, axis) for axis in pair.values())
    order = list(range(len(self.shape)))
    order[a], order[b] = order[b], order[a]
    return site.permute(self, order)


@rule("aten.t.default", "aten.numpy_T.default")
def reverse_axes(site: Site, self: Value) -> Value:
    return site.permute(self, range(len(self.shape))[::-1])


@rule("aten.mT.default", "aten.adjoint.default", "aten.mH.default")
def matrix_transpose(site: Site, self: Value) -> Value:
    return transpose(site, self, first=-2, second=-1)


@rule("aten.permute.default")
def permute(site: Site, self: Value, dims: Sequence[int]) -> Value:
    return site.permute(self, [site.axis(self, axis) for axis in dims])


@rule("aten.movedim.int", "aten.movedim.intlist")
def movedim(site: Site, self: Value, source: Any, destination: Any) -> Value:
    sources = [site.axis(self, a) for a in ([source] if isinstance(source, int) else source)]
    targets = [site.axis(self, a) for a in ([destination] if isinstance(destination, int) else destination)]
    order = [axis for axis in range(len(self.shape)) if axis not in sources]
    for target, axis in sorted(zip(targets, sources, strict=True)):
        order.insert(target, axis)
    return site.permute(self, order)


@rule("aten.expand.default")
def expand(site: Site, self: Value, size: Any, implicit: bool) -> Value:
    return site.expand(self, site.result.shape)


@rule("aten.broadcast_to.default")
def broadcast_to(site: Site, self: Value, size: Any) -> Value:
    return site.expand(self, site.result.shape)


@rule("aten.expand_as.default")
def expand_as(site: Site, self: Value, other: Value) -> Value:
    return site.expand(self, site.result.shape)


@rule("aten.broadcast_tensors.default")
def broadcast_tensors(site: Site, tensors: Sequence[Value]) -> list[Value]:
    types = [result for result in site.results if result is not None]
    return [site.expand(x, type.shape) for x, type in zip(tensors, types, strict=True)]


@rule("aten.repeat.default")
def repeat(site: Site, self: Value, repeats: Sequence[Dim]) -> Value:
    return tile(site, self, repeats)


@rule("aten.tile.default")
def tile(site: Site, self: Value, dims: Sequence[Dim]) -> Value:
    """Each axis becomes (copies, size), which is then one axis."""
    rank = max(len(dims), len(self.shape))
    copies = [1] * (rank - len(dims)) + list(dims)
    sizes = [1] * (rank - len(self.shape)) + list(self.shape)
    pairs = [size for pair in zip([1] * rank, sizes, strict=True) for size in pair]
    wide = [size for pair in zip(copies, sizes, strict=True) for size in pair]
    return site.reshape(site.expand(site.reshape(self, pairs), wide), site.result.shape)


@rule("aten.repeat_interleave.self_int")
def repeat_interleave(site: Site, self: Value, repeats: Dim, dim: int | None, output_size: Any) -> Value:
    x = self if dim is not None else site.reshape(self, (self.tensor.elements,))
    axis = site.axis(x, dim or 0)
    before, after = x.shape[: axis + 1], x.shape[axis + 1 :]
    column = site.reshape(x, (*before, 1, *after))
    return site.reshape(site.expand(column, (*before, repeats, *after)), site.result.shape)


@rule("aten.slice.Tensor")
def slice_(site: Site, self: Value, dim: int, start: Any, end: Any, step: int) -> Value:
    axis = site.axis(self, dim)
    first, last = slice_bounds(site, self, axis, start, end, step)
    return site.slice(self, axis, first, last, step)


def slice_bounds(site: Site, x: Value, axis: int, start: Dim | None, end: Dim | None, step: int) -> tuple[Dim, Dim]:
    """A slice's start and stop within the axis. Torch cuts them off at the size: that is written out only where the
    length torch found says that it happens."""
    size = x.shape[axis]
    first, last = _position(size, start or 0), _position(size, _END if end is None else end)
    if step == 1 and last - first == site.result.shape[axis]:
        return first, last
    return minimum(first, size), minimum(last, size)


def _position(size: Dim, position: Dim) -> Dim:
    if isinstance(position, int):
        if position >= _END:
            return size
        if position < 0:
            return max(0, size + position) if isinstance(size, int) else size + position
    elif not is_nonnegative(position) and is_nonnegative(-position):
        return size + position
    return position


@rule("aten.narrow.default")
def narrow(site: Site, self: Value, dim: int, start: Dim, length: Dim) -> Value:
    return slice_(site, self, dim, start, start + length, 1)


@rule("aten.select.int")
def select(site: Site, self: Value, dim: int, index: Dim) -> Value:
    axis = site.axis(self, dim)
    position = self.shape[axis] + index if isinstance(index, int) and index < 0 else index
    return site.reshape(site.slice(self, axis, position, position + 1), site.result.shape)


@rule("aten.unbind.int")
def unbind(site: Site, self: Value, dim: int) -> list[Value]:
    size = self.shape[site.axis(self, dim)]
    if isinstance(size, SymDim):
        raise Untranslatable("a number of results that depends on a size")
    return [select(site, self, dim, index) for index in range(size)]


@rule("aten.split_with_sizes.default")
def split_with_sizes(site: Site, self: Value, split_sizes: Sequence[Dim], dim: int) -> list[Value]:
    return _pieces(site, self, dim, split_sizes)


@rule("aten.split.sizes")
def split_by(site: Site, self: Value, split_size: Sequence[Dim], dim: int) -> list[Value]:
    return _pieces(site, self, dim, split_size)


@rule("aten.split.Tensor")
def split(site: Site, self: Value, split_size: Dim, dim: int) -> list[Value]:
    return _pieces(site, self, dim, _result_sizes(site, self, dim))


@rule("aten.chunk.default")
def chunk(site: Site, self: Value, chunks: int, dim: int) -> list[Value]:
    return _pieces(site, self, dim, _result_sizes(site, self, dim))


@rule("aten.tensor_split.sections")
def tensor_split(site: Site, self: Value, sections: int, dim: int) -> list[Value]:
    return _pieces(site, self, dim, _result_sizes(site, self, dim))


def _result_sizes(site: Site, x: Value, dim: int) -> list[Dim]:
    return [result.shape[site.axis(x, dim)] for result in site.results if result is not None]


def _pieces(site: Site, x: Value, dim: int, sizes: Sequence[Dim]) -> list[Value]:
    axis = site.axis(x, dim)
    start: Dim = 0
    pieces = []
    for size in sizes:
        pieces.append(site.slice(x, axis, start, start + size))
        start = start + size
    return pieces


@rule("aten.cat.default")
def cat(site: Site, tensors: Sequence[Value], dim: int) -> Value:
    parts = [site.cast(x, site.result.dtype) for x in tensors if x.shape != (0,)]  # torch skips empty vectors
    return parts[0] if len(parts) == 1 else site("concat", *parts, axis=site.axis(parts[0], dim))


@rule("aten.concat.default", "aten.concatenate.default")
def concat(site: Site, tensors: Sequence[Value], dim: int) -> Value:
    return cat(site, tensors, dim)


@rule("aten.stack.default")
def stack(site: Site, tensors: Sequence[Value], dim: int) -> Value:
    axis = dim % (len(tensors[0].shape) + 1)
    dtype = promote(*(x.dtype for x in tensors))
    rows = [site.cast(site.unsqueeze(x, axis), dtype) for x in tensors]
    return rows[0] if len(rows) == 1 else site("concat", *rows, axis=axis)


@rule("aten.flip.default")
def flip(site: Site, self: Value, dims: Sequence[int]) -> Value:
    return site("flip", self, axes=tuple(site.axis(self, axis) for axis in dims))


@rule("aten.roll.default")
def roll(site: Site, self: Value, shifts: Sequence[Any], dims: Sequence[int]) -> Value:
    x = self if dims else site.reshape(self, (self.tensor.elements,))
    for shift, dim in zip(shifts, dims or [0], strict=True):
        axis = site.axis(x, dim)
        size = x.shape[axis]
        cut = -shift if shift < 0 else size - shift
        cut = cut % size if isinstance(size, int) and isinstance(cut, int) else cut
        x = site("concat", site.slice(x, axis, cut), site.slice(x, axis, 0, cut), axis=axis)
    return site.reshape(x, self.shape)


@rule("aten.constant_pad_nd.default")
def constant_pad(site: Site, self: Value, pad: Sequence[Dim], value: Any) -> Value:
    """`pad` lists (before, after) from the last axis backwards; negative amounts cut."""
    rank = len(self.shape)
    untouched: list[Dim] = [0] * (rank - len(pad) // 2)
    before, after = (untouched + list(pad[side::2])[::-1] for side in (0, 1))
    if any(isinstance(amount, int) and amount < 0 for amount in (*before, *after)):
        raise Untranslatable("padding that cuts")
    return site("pad", self, before=tuple(before), after=tuple(after), value=value)


@rule("aten.pad.default")
def pad(site: Site, self: Value, pad: Sequence[Dim], mode: str, value: Any) -> Value:
    if mode != "constant":
        raise Untranslatable(f"padding by {mode}")
    return constant_pad(site, self, pad, 0.0 if value is None else value)


@rule("aten.diff.default")
def diff(site: Site, self: Value, n: int, dim: int, prepend: Value | None, append: Value | None) -> Value:
    axis = site.axis(self, dim)
    parts = [site.cast(x, self.dtype) for x in (prepend, self, append) if x is not None]
    x = parts[0] if len(parts) == 1 else site("concat", *parts, axis=axis)
    for _ in range(n):
        size = x.shape[axis]
        x = site("sub", site.slice(x, axis, 1, size), site.slice(x, axis, 0, size - 1))
    return x


@rule("aten.meshgrid.default", "aten.meshgrid.indexing")
def meshgrid(site: Site, tensors: Sequence[Value], indexing: str = "ij") -> list[Value]:
    types = [result for result in site.results if result is not None]
    rank = len(tensors)
    results = []
    for place, (x, type) in enumerate(zip(tensors, types, strict=True)):
        axis = 1 - place if indexing == "xy" and place < 2 else place
        shape = [x.tensor.elements if k == axis else 1 for k in range(rank)]
        results.append(site.expand(site.reshape(x, shape), type.shape))
    return results
