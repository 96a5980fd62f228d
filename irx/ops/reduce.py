"""Reductions, softmax and top-k. Floats keep their dtype and are accumulated in at least float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from irx.ir.dims import Dim
from irx.ir.opdef import Array, OpDef
from irx.ir.types import TensorType
from irx.ops.numerics import logsumexp, softmax, top_indices, wide
from irx.ops.shapes import accumulated, axis_of, floating, need, need_float, reduced, replaced, result_dtype


def _reduce(function: Any, x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    """numpy's reduction in at least float32, back in the dtype of a float operand."""
    x = np.asarray(x)
    result = np.asarray(function(wide(x) if x.dtype.kind not in "iub" else x, axis=tuple(axes), keepdims=keepdims))
    return result if x.dtype.kind in "iub" else result.astype(x.dtype)


class Reduction(OpDef):
    """Reduces `axes`; what is left keeps its order."""

    @staticmethod
    def infer(x: TensorType, *, axes: tuple[int, ...], keepdims: bool = False) -> TensorType:
        return TensorType(reduced(x.shape, axes, keepdims), result_dtype(x))

    @staticmethod
    def flops(x: TensorType, *, axes: tuple[int, ...], keepdims: bool = False) -> Dim:
        return x.elements


class Sum(Reduction):
    """The sum over `axes`; integers and booleans give i64."""

    name = "sum"

    @staticmethod
    def infer(x: TensorType, *, axes: tuple[int, ...], keepdims: bool = False) -> TensorType:
        return TensorType(reduced(x.shape, axes, keepdims), accumulated(result_dtype(x)))

    @staticmethod
    def reference(x: Array, *, axes: tuple[int, ...], keepdims: bool = False) -> Array:
        return _reduce(np.sum, x, axes, keepdims)


class Mean(Reduction):
    """The mean over `axes`; integers and booleans give f32."""

    name = "mean"

    @staticmethod
    def infer(x: TensorType, *, axes: tuple[int, ...], keepdims: bool = False) -> TensorType:
        return TensorType(reduced(x.shape, axes, keepdims), floating(result_dtype(x)))

    @staticmethod
    def reference(x: Array, *, axes: tuple[int, ...], keepdims: bool = False) -> Array:
        return _reduce(np.mean, x, axes, keepdims)


class Amax(Reduction):
    """The largest element over `axes`."""

    name = "amax"

    @staticmethod
    def reference(x: Array, *, axes: tuple[int, ...], keepdims: bool = False) -> Array:
        return np.asarray(np.max(x, axis=tuple(axes), keepdims=keepdims))


class Amin(Reduction):
    """The smallest element over `axes`."""

    name = "amin"

    @staticmethod
    def reference(x: Array, *, axes: tuple[int, ...], keepdims: bool = False) -> Array:
        return np.asarray(np.min(x, axis=tuple(axes), keepdims=keepdims))


class Truth(Reduction):
    """Reduces `axes` to booleans."""

    @staticmethod
    def infer(x: TensorType, *, axes: tuple[int, ...], keepdims: bool = False) -> TensorType:
        return TensorType(reduced(x.shape, axes, keepdims), "bool")


class AnyTrue(Truth):
    """True where some element over `axes` is not zero; bool."""

    name = "any"

    @staticmethod
    def reference(x: Array, *, axes: tuple[int, ...], keepdims: bool = False) -> Array:
        return np.asarray(np.any(x, axis=tuple(axes), keepdims=keepdims))


class AllTrue(Truth):
    """True where every element over `axes` is not zero; bool."""

    name = "all"

    @staticmethod
    def reference(x: Array, *, axes: tuple[int, ...], keepdims: bool = False) -> Array:
        return np.asarray(np.all(x, axis=tuple(axes), keepdims=keepdims))


class Argmax(OpDef):
    """The index of the largest element along `axis`, the lowest of equals; i64."""

    name = "argmax"

    @staticmethod
    def infer(x: TensorType, *, axis: int, keepdims: bool = False) -> TensorType:
        return TensorType(reduced(x.shape, (axis,), keepdims), "i64")

    @staticmethod
    def reference(x: Array, *, axis: int, keepdims: bool = False) -> Array:
        return np.asarray(np.argmax(x, axis=axis, keepdims=keepdims))

    @staticmethod
    def flops(x: TensorType, *, axis: int, keepdims: bool = False) -> Dim:
        return x.elements


class Cumsum(OpDef):
    """Sums of all elements up to each one along `axis`; integers and booleans give i64."""

    name = "cumsum"

    @staticmethod
    def infer(x: TensorType, *, axis: int) -> TensorType:
        axis_of(axis, x.rank)
        return x.with_dtype(accumulated(result_dtype(x)))

    @staticmethod
    def reference(x: Array, *, axis: int) -> Array:
        x = np.asarray(x)
        if x.dtype.kind in "iub":
            return np.cumsum(x, axis=axis, dtype=np.int64)
        return np.cumsum(wide(x), axis=axis).astype(x.dtype)

    @staticmethod
    def flops(x: TensorType, *, axis: int) -> Dim:
        return x.elements


class Softmax(OpDef):
    """exp(x) over its sum along `axis`, for a float tensor; a row of only -inf gives nan."""

    name = "softmax"

    @staticmethod
    def infer(x: TensorType, *, axis: int) -> TensorType:
        need_float(x, "x")
        axis_of(axis, x.rank)
        return x

    @staticmethod
    def reference(x: Array, *, axis: int) -> Array:
        return softmax(x, axis)

    @staticmethod
    def flops(x: TensorType, *, axis: int) -> Dim:
        return 5 * x.elements


class LogSoftmax(OpDef):
    """x minus the log of the sum of exponentials along `axis`, for a float tensor."""

    name = "log_softmax"

    @staticmethod
    def infer(x: TensorType, *, axis: int) -> TensorType:
        need_float(x, "x")
        axis_of(axis, x.rank)
        return x

    @staticmethod
    def reference(x: Array, *, axis: int) -> Array:
        return (x - logsumexp(x, (axis,), True)).astype(x.dtype)

    @staticmethod
    def flops(x: TensorType, *, axis: int) -> Dim:
        return 5 * x.elements


class Logsumexp(OpDef):
    """The log of the sum of exponentials over `axes`, for a float tensor; -inf where everything is -inf."""

    name = "logsumexp"

    @staticmethod
    def infer(x: TensorType, *, axes: tuple[int, ...], keepdims: bool = False) -> TensorType:
        need_float(x, "x")
        return x.with_shape(*reduced(x.shape, axes, keepdims))

    @staticmethod
    def reference(x: Array, *, axes: tuple[int, ...], keepdims: bool = False) -> Array:
        return logsumexp(x, tuple(axes), keepdims)

    @staticmethod
    def flops(x: TensorType, *, axes: tuple[int, ...], keepdims: bool = False) -> Dim:
        return 4 * x.elements


class Topk(OpDef):
    """(values, i64 indices) of the k largest along `axis`, largest first, ties to the lower index."""

    name = "topk"

    @staticmethod
    def infer(x: TensorType, *, k: Dim, axis: int) -> tuple[TensorType, TensorType]:
        place = axis_of(axis, x.rank)
        size = x.shape[place]
        fits = not (isinstance(k, int) and isinstance(size, int)) or 0 <= k <= size
        need(fits, f"k is {k}, but axis {axis} has {size} elements")
        values = TensorType(replaced(x.shape, place, k), result_dtype(x))
        return values, values.with_dtype("i64")

    @staticmethod
    def reference(x: Array, *, k: int, axis: int) -> tuple[Array, Array]:
        indices = top_indices(x, k, axis)
        return np.take_along_axis(x, indices, axis), indices

    @staticmethod
    def flops(x: TensorType, *, k: Dim, axis: int) -> Dim:
        return x.elements
