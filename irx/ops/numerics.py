"""Numpy functions that several references share, written for accuracy and for a fixed order of summation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from irx.ir.opdef import Array, as_float64

_ROWS_AT_ONCE = 1 << 13  # rows of a weight lifted to float64 together: bounds memory, and does not change results


def wide(x: Array) -> Array:
    """`x` in float32 where its dtype is narrower: statistics are never accumulated in half precision."""
    x = np.asarray(x)
    return x.astype(np.float32) if x.dtype.itemsize < 4 else x


def erf(x: Array) -> Array:
    """The error function, as accurate as the C library's, in the dtype of `x` (float64 for integers)."""
    x = np.asarray(x)
    values = np.asarray(_erf(as_float64(x)), dtype=np.float64)
    return values if x.dtype.kind in "iub" else values.astype(x.dtype)


_erf = np.frompyfunc(math.erf, 1, 1)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow, accurate in both tails."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -np.asarray(x))))


def gelu(x: Array, approximate: str = "none") -> Array:
    """x * Phi(x), by the error function or by the tanh formula."""
    x = np.asarray(x)
    if approximate == "tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))))
    return np.asarray(0.5 * x * (1 + erf(x / math.sqrt(2))))


def softmax(x: Array, axis: int) -> Array:
    """Softmax in at least float32; a row of only -inf gives nan, as in torch."""
    z = wide(x)
    e = np.exp(z - z.max(axis=axis, keepdims=True))
    return np.asarray(e / e.sum(axis=axis, keepdims=True), dtype=np.asarray(x).dtype)


def logsumexp(x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    """log of the sum of exponentials, -inf where everything is -inf."""
    z = wide(x)
    top = z.max(axis=axes, keepdims=True)
    shift = np.where(np.isfinite(top), top, 0)
    total = np.log(np.exp(z - shift).sum(axis=axes, keepdims=True)) + shift
    result = total if keepdims else total.squeeze(axis=axes)
    return np.asarray(result.astype(np.asarray(x).dtype))


def project(x: Array, weight: Array) -> Array:
    """`y[n, :] = weight @ x[n, :]` for x [rows, K], weight [N, K], in float64 and one row after the other.

    An element of the result is the same to the last bit however many rows and outputs are computed together, so that
    merged, split and chunked products agree. The weight is lifted to float64 piece by piece.
    """
    rows = np.ascontiguousarray(as_float64(x), dtype=np.float64)
    result = np.empty((len(rows), len(weight)), np.float64)
    for start in range(0, len(weight), _ROWS_AT_ONCE):
        piece = np.ascontiguousarray(weight[start : start + _ROWS_AT_ONCE], dtype=np.float64)
        for row, y in zip(rows, result, strict=True):
            y[start : start + len(piece)] = dot(piece, row)
    return result


def dot(matrix: Array, vector: Array) -> Array:
    """matrix @ vector, every element summed in the same order; a BLAS product depends on the matrix's height."""
    return np.asarray(np.einsum("nk,k->n", matrix, vector))


def top_indices(x: Array, k: int, axis: int = -1) -> Array:
    """Indices of the `k` largest along `axis`, largest first, ties to the lower index."""
    x = np.asarray(x)
    # A stable sort of the reversed axis, read backwards, keeps equal elements in their order and needs no negation.
    order = np.argsort(np.flip(x, axis), axis=axis, kind="stable")
    backwards = np.flip(order, axis)
    chosen: Any = np.take(backwards, np.arange(k), axis=axis)
    return np.asarray(x.shape[axis] - 1 - chosen, dtype=np.int64)
