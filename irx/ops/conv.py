"""Convolutions over one and two spatial axes, in the layout of torch: batch, channels, space."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from irx.ir.dims import Dim
from irx.ir.opdef import Array, OpDef
from irx.ir.types import TensorType
from irx.ops.numerics import project
from irx.ops.shapes import need, need_float, need_rank, need_same_dtype, need_shape

Pair: TypeAlias = tuple[int, int]
Ints: TypeAlias = tuple[int, ...]


def _infer(
    x: TensorType, weight: TensorType, bias: TensorType | None, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> TensorType:
    space = len(stride)
    need_rank(x, space + 2, "x")
    need_rank(weight, space + 2, "weight")
    need_float(x, "x")
    need_same_dtype("x, weight and bias", x, weight, *([bias] if bias is not None else []))
    if bias is not None:
        need_shape(bias, weight.shape[:1], "bias")
    need(x.shape[1] == weight.shape[1] * groups, f"x {x} does not have {groups} times the channels of {weight}")
    filters = weight.shape[0]
    need(not isinstance(filters, int) or filters % groups == 0, f"{filters} filters are not a multiple of {groups}")
    sizes = [
        (size + 2 * p - d * (kernel - 1) - 1) // s + 1
        for size, kernel, s, p, d in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    ]
    need(all(not isinstance(n, int) or n > 0 for n in sizes), f"the kernel {weight} is larger than x {x}")
    return x.with_shape(x.shape[0], filters, *sizes)


def _reference(
    x: Array, weight: Array, bias: Array | None, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Array:
    space = len(stride)
    padded = np.pad(np.asarray(x, np.float64), [(0, 0), (0, 0), *((p, p) for p in padding)])
    extent = tuple(d * (k - 1) + 1 for k, d in zip(weight.shape[2:], dilation, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(padded, extent, axis=tuple(range(2, 2 + space)))
    thin = (slice(None), slice(None), *(slice(None, None, step) for step in (*stride, *dilation)))
    # [batch, *positions, channels, *kernel]: one row of a matrix product per output position
    patches = np.moveaxis(windows[thin], 1, 1 + space)
    places = patches.shape[: 1 + space]
    channels, filters = x.shape[1] // groups, weight.shape[0] // groups
    parts = []
    for g in range(groups):
        rows = np.take(patches, np.arange(g * channels, (g + 1) * channels), axis=1 + space)
        kernel = weight[g * filters : (g + 1) * filters].reshape(filters, -1)
        parts.append(project(rows.reshape(int(np.prod(places)), -1), kernel))
    y = np.concatenate(parts, axis=1).reshape(*places, -1)
    y = y if bias is None else y + bias
    return np.moveaxis(y, -1, 1)


def _flops(x: TensorType, weight: TensorType, result: TensorType) -> Dim:
    per_output = 2 * weight.with_shape(*weight.shape[1:]).elements
    return result.elements * per_output


class Conv1d(OpDef):
    """Convolution of x [B, C, L] with weight [N, C / groups, K] and bias [N]: [B, N, L'], one float dtype.

    L' = floor((L + 2 padding - dilation (K - 1) - 1) / stride) + 1; padding is zeros at both ends.
    """

    name = "conv1d"

    @staticmethod
    def infer(
        x: TensorType,
        weight: TensorType,
        bias: TensorType | None = None,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
    ) -> TensorType:
        return _infer(x, weight, bias, (stride,), (padding,), (dilation,), groups)

    @staticmethod
    def reference(
        x: Array,
        weight: Array,
        bias: Array | None = None,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
    ) -> Array:
        return _reference(x, weight, bias, (stride,), (padding,), (dilation,), groups)

    @staticmethod
    def flops(
        x: TensorType,
        weight: TensorType,
        bias: TensorType | None = None,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
    ) -> Dim:
        return _flops(x, weight, _infer(x, weight, bias, (stride,), (padding,), (dilation,), groups))


class Conv2d(OpDef):
    """Convolution of x [B, C, H, W] with weight [N, C / groups, KH, KW] and bias [N]: [B, N, H', W'], one float dtype.

    Sizes as in conv1d, for each axis; stride, padding and dilation are pairs (height, width).
    """

    name = "conv2d"

    @staticmethod
    def infer(
        x: TensorType,
        weight: TensorType,
        bias: TensorType | None = None,
        *,
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
    ) -> TensorType:
        return _infer(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def reference(
        x: Array,
        weight: Array,
        bias: Array | None = None,
        *,
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
    ) -> Array:
        return _reference(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def flops(
        x: TensorType,
        weight: TensorType,
        bias: TensorType | None = None,
        *,
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
    ) -> Dim:
        return _flops(x, weight, _infer(x, weight, bias, stride, padding, dilation, groups))
