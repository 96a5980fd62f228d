"""Ops that only change the shape or select: no arithmetic, and (but for `concat` and `pad`) no copy in principle."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from irx.ir.dims import Dim
from irx.ir.opdef import Array, OpDef
from irx.ir.types import TensorType, Type, numpy_dtype
from irx.ops.shapes import (
    axes_of,
    axis_of,
    broadcasts_to,
    need,
    replaced,
    result_dtype,
    same_count,
    selected_dtype,
    show,
    slice_length,
    steps,
)


class Free(OpDef):
    """Ops that cost no arithmetic."""

    @staticmethod
    def flops(*_operands: TensorType | None, **_attrs: object) -> Dim:
        return 0


class View(Free):
    """Ops that a layout can express, so that they move no bytes either."""

    @classmethod
    def bytes(cls, operands: Sequence[Type | None], results: Sequence[Type]) -> Dim:
        return 0


class Reshape(View):
    """x with its elements, in row-major order, in another shape of as many elements."""

    name = "reshape"

    @staticmethod
    def infer(x: TensorType, *, shape: tuple[Dim, ...]) -> TensorType:
        need(same_count(x.shape, shape), f"{x} cannot become {show(shape)}: the element counts differ")
        return TensorType(tuple(shape), result_dtype(x))

    @staticmethod
    def reference(x: Array, *, shape: tuple[int, ...]) -> Array:
        return np.reshape(x, shape)


class Permute(View):
    """x with its axes in another order: axis i of the result is axis order[i] of x."""

    name = "permute"

    @staticmethod
    def infer(x: TensorType, *, order: tuple[int, ...]) -> TensorType:
        need(len(axes_of(order, x.rank)) == x.rank, f"order {tuple(order)} does not name all axes of {x}")
        return TensorType(tuple(x.shape[axis] for axis in order), result_dtype(x))

    @staticmethod
    def reference(x: Array, *, order: tuple[int, ...]) -> Array:
        return np.transpose(x, order)


class Expand(View):
    """x broadcast to `shape`."""

    name = "expand"

    @staticmethod
    def infer(x: TensorType, *, shape: tuple[Dim, ...]) -> TensorType:
        broadcasts_to(x.shape, shape, "x")
        return TensorType(tuple(shape), result_dtype(x))

    @staticmethod
    def reference(x: Array, *, shape: tuple[int, ...]) -> Array:
        return np.broadcast_to(x, shape)


class Slice(View):
    """x[start:stop:step] along `axis`; bounds are clamped as in Python, stop none means the end."""

    name = "slice"

    @staticmethod
    def infer(x: TensorType, *, axis: int, start: Dim = 0, stop: Dim | None = None, step: int = 1) -> TensorType:
        place = axis_of(axis, x.rank)
        length = slice_length(x.shape[place], start, stop, step)
        return TensorType(replaced(x.shape, place, length), selected_dtype(place, x))

    @staticmethod
    def reference(x: Array, *, axis: int, start: int = 0, stop: int | None = None, step: int = 1) -> Array:
        return x[_along(axis, x.ndim, start, stop, step)]


def _along(axis: int, rank: int, start: int, stop: int | None, step: int) -> tuple[slice, ...]:
    return (slice(None),) * (axis % rank) + (slice(start, stop, step),)


class Flip(View):
    """x with the order of its elements reversed along `axes`."""

    name = "flip"

    @staticmethod
    def infer(x: TensorType, *, axes: tuple[int, ...]) -> TensorType:
        axes_of(axes, x.rank)
        return x.with_dtype(result_dtype(x))

    @staticmethod
    def reference(x: Array, *, axes: tuple[int, ...]) -> Array:
        return np.flip(x, axes)


class Concat(Free):
    """The tensors one after the other along `axis`; the other sizes are equal; dtypes promote."""

    name = "concat"

    @staticmethod
    def infer(*xs: TensorType, axis: int) -> TensorType:
        need(bool(xs), "takes at least one tensor")
        place = axis_of(axis, xs[0].rank)
        total: Dim = 0
        for x in xs:
            need(x.rank == xs[0].rank, f"{x} and {xs[0]} have different numbers of axes")
            others = replaced(x.shape, place) == replaced(xs[0].shape, place)
            need(others, f"{x} and {xs[0]} differ in more than axis {axis}")
            total = total + x.shape[place]
        return TensorType(replaced(xs[0].shape, place, total), selected_dtype(place, *xs))

    @staticmethod
    def reference(*xs: Array, axis: int) -> Array:
        return np.concatenate(xs, axis=axis)


class Pad(Free):
    """x with `before[i]` and `after[i]` elements of `value` added at the ends of axis i."""

    name = "pad"

    @staticmethod
    def infer(x: TensorType, *, before: tuple[Dim, ...], after: tuple[Dim, ...], value: float = 0.0) -> TensorType:
        need(len(before) == len(after) == x.rank, f"before and after need one number for each axis of {x}")
        negative = any(isinstance(n, int) and n < 0 for n in (*before, *after))
        need(not negative, "padding must not be negative: slice instead")
        shape = tuple(b + size + a for b, size, a in zip(before, x.shape, after, strict=True))
        return TensorType(shape, result_dtype(x))

    @staticmethod
    def reference(x: Array, *, before: tuple[int, ...], after: tuple[int, ...], value: float = 0.0) -> Array:
        return np.pad(x, list(zip(before, after, strict=True)), constant_values=value)


class Arange(Free):
    """start, start + step, ... up to before stop: one axis of ceil((stop - start) / step) numbers."""

    name = "arange"

    @staticmethod
    def infer(*, start: Dim = 0, stop: Dim, step: int = 1, dtype: str = "i64") -> TensorType:
        return TensorType((steps(start, stop, step),), dtype)

    @staticmethod
    def reference(*, start: int = 0, stop: int, step: int = 1, dtype: str = "i64") -> Array:
        return np.arange(start, stop, step).astype(numpy_dtype(dtype))


class Full(Free):
    """A tensor of `shape` with every element `value`."""

    name = "full"

    @staticmethod
    def infer(*, shape: tuple[Dim, ...], value: float | int | bool, dtype: str) -> TensorType:
        return TensorType(tuple(shape), dtype)

    @staticmethod
    def reference(*, shape: tuple[int, ...], value: float | int | bool, dtype: str) -> Array:
        return np.full(shape, value, dtype=numpy_dtype(dtype))
