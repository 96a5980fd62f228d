"""Normalisation over the last axis. Statistics are computed in at least float32; the result has x's dtype."""

from __future__ import annotations

import numpy as np

from irx.ir.dims import Dim
from irx.ir.opdef import Array, OpDef
from irx.ir.types import TensorType
from irx.ops.numerics import wide
from irx.ops.shapes import need, need_float, need_shape


def _check(x: TensorType, **vectors: TensorType | None) -> TensorType:
    need_float(x, "x")
    need(x.rank >= 1, "x needs at least one axis")
    for name, vector in vectors.items():
        if vector is not None:
            need_shape(vector, x.shape[-1:], name)
            need_float(vector, name)
    return x


class RmsNorm(OpDef):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang and Sennrich 2019, arXiv:1910.07467).

    x [..., D], weight [D] or none. `cast_before_weight`: the normalised value is rounded to x's dtype before it is
    multiplied (Llama); otherwise the product is formed in f32 and rounded once (Gemma).
    """

    name = "rms_norm"

    @staticmethod
    def infer(
        x: TensorType, weight: TensorType | None = None, *, eps: float, cast_before_weight: bool = False
    ) -> TensorType:
        return _check(x, weight=weight)

    @staticmethod
    def reference(x: Array, weight: Array | None = None, *, eps: float, cast_before_weight: bool = False) -> Array:
        z = wide(x)
        y = z / np.sqrt(np.mean(z * z, axis=-1, keepdims=True) + eps)
        y = y.astype(x.dtype) if cast_before_weight else y
        return np.asarray(y if weight is None else y * weight).astype(x.dtype)

    @staticmethod
    def flops(x: TensorType, weight: TensorType | None = None, *, eps: float, cast_before_weight: bool = False) -> Dim:
        return (3 if weight is None else 4) * x.elements


class LayerNorm(OpDef):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis (Ba et al. 2016, arXiv:1607.06450).

    x [..., D], weight and bias [D] or none.
    """

    name = "layer_norm"

    @staticmethod
    def infer(
        x: TensorType, weight: TensorType | None = None, bias: TensorType | None = None, *, eps: float
    ) -> TensorType:
        return _check(x, weight=weight, bias=bias)

    @staticmethod
    def reference(x: Array, weight: Array | None = None, bias: Array | None = None, *, eps: float) -> Array:
        z = wide(x)
        centred = z - np.mean(z, axis=-1, keepdims=True)
        y = centred / np.sqrt(np.mean(centred * centred, axis=-1, keepdims=True) + eps)
        y = y if weight is None else y * weight
        y = y if bias is None else y + bias
        return np.asarray(y).astype(x.dtype)

    @staticmethod
    def flops(x: TensorType, weight: TensorType | None = None, bias: TensorType | None = None, *, eps: float) -> Dim:
        return (5 + (weight is not None) + (bias is not None)) * x.elements
