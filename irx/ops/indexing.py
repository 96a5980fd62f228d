"""Shape family, second part: reading and writing at indices. Indices may be negative, counting from the end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from irx.ir.dims import Dim
from irx.ir.opdef import Array, tensor_bytes
from irx.ir.types import TensorType, Type
from irx.ops.shape import Free
from irx.ops.shapes import (
    axis_of,
    broadcasts_to,
    category,
    need,
    need_integer,
    need_shape,
    replaced,
    result_dtype,
    selected_dtype,
    slice_length,
)


class Gathering(Free):
    """Ops that read from their first operand only what they return."""

    @classmethod
    def bytes(cls, operands: Sequence[Type | None], results: Sequence[Type]) -> Dim:
        read = operands[1]
        index = tensor_bytes(read) if isinstance(read, TensorType) else 0
        return index + 2 * sum((tensor_bytes(r) for r in results if isinstance(r, TensorType)), start=0)


class Take(Gathering):
    """x[..., index, ...] at `axis`: shape x[:axis] + index.shape + x[axis+1:]; index integers of any rank."""

    name = "take"

    @staticmethod
    def infer(x: TensorType, index: TensorType, *, axis: int) -> TensorType:
        need_integer(index, "index")
        place = axis_of(axis, x.rank)
        return TensorType(replaced(x.shape, place, *index.shape), selected_dtype(place, x))

    @staticmethod
    def reference(x: Array, index: Array, *, axis: int) -> Array:
        return np.take(x, index, axis=axis)


def _check_index(x: TensorType, index: TensorType, axis: int) -> None:
    """The index of gather and scatter has x's rank and is not larger than x, except along the axis."""
    need_integer(index, "index")
    place = axis_of(axis, x.rank)
    need(index.rank == x.rank, f"index {index} needs as many axes as {x}")
    for i, (small, size) in enumerate(zip(index.shape, x.shape, strict=True)):
        known = isinstance(small, int) and isinstance(size, int)
        fits = i == place or (small <= size if known else True)  # type: ignore[operator]
        need(fits, f"index {index} is larger than {x} at axis {i}")


class Gather(Gathering):
    """y[i, j] = x[index[i, j], j] for axis 0, and so on: index has x's rank, the result has index's shape."""

    name = "gather"

    @staticmethod
    def infer(x: TensorType, index: TensorType, *, axis: int) -> TensorType:
        _check_index(x, index, axis)
        return TensorType(index.shape, result_dtype(x))

    @staticmethod
    def reference(x: Array, index: Array, *, axis: int) -> Array:
        return np.take_along_axis(x[_region(index, axis)], index, axis=axis)


def _region(index: Array, axis: int) -> tuple[slice, ...]:
    """The part of a tensor that an index of gather or scatter covers: everything along the axis."""
    return tuple(slice(None) if i == axis % index.ndim else slice(n) for i, n in enumerate(index.shape))


class Scatter(Free):
    """x with x[index[i, j], j] = source[i, j] for axis 0, and so on; source a tensor of index's shape or a scalar.

    Where an index occurs twice the last one counts here; kernels may take either.
    """

    name = "scatter"

    @staticmethod
    def infer(x: TensorType, index: TensorType, source: TensorType, *, axis: int) -> TensorType:
        _check_index(x, index, axis)
        if source.shape:
            need_shape(source, index.shape, "source")
        _check_source(x, source)
        return x

    @staticmethod
    def reference(x: Array, index: Array, source: Array, *, axis: int) -> Array:
        result = np.array(x)
        np.put_along_axis(result[_region(index, axis)], index, np.asarray(source).astype(result.dtype), axis=axis)
        return result


def _check_source(x: TensorType, source: TensorType) -> None:
    need(category(source.dtype) <= category(x.dtype), f"source {source} does not fit into {x}")


class ScatterSlice(Free):
    """x with x[start:stop:step] along `axis` replaced by source, which broadcasts to that slice."""

    name = "scatter_slice"

    @staticmethod
    def infer(
        x: TensorType, source: TensorType, *, axis: int, start: Dim = 0, stop: Dim | None = None, step: int = 1
    ) -> TensorType:
        place = axis_of(axis, x.rank)
        target = replaced(x.shape, place, slice_length(x.shape[place], start, stop, step))
        broadcasts_to(source.shape, target, "source")
        _check_source(x, source)
        return x

    @staticmethod
    def reference(
        x: Array, source: Array, *, axis: int, start: int = 0, stop: int | None = None, step: int = 1
    ) -> Array:
        result = np.array(x)
        result[(slice(None),) * (axis % x.ndim) + (slice(start, stop, step),)] = source
        return result
