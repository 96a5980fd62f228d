"""Matrix products, table lookup, and unpacking of block-quantized weights.

The references compute every row of a product separately and in float64, so that a row's result does not depend on how
many rows there are; they lift a large weight to float64 piece by piece.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from irx.errors import TypeRuleError
from irx.ir.blocks import FORMATS, unpack
from irx.ir.dims import Dim
from irx.ir.opdef import Array, OpDef, tensor_bytes
from irx.ir.types import FLOATS, TensorType, Type, is_packed, numpy_dtype
from irx.ops.numerics import project
from irx.ops.shapes import broadcast, need, need_float, need_integer, need_rank, need_same_dtype, need_shape


class Linear(OpDef):
    """x @ weight.T + bias: x [..., K], weight [N, K], bias [N] give [..., N]; all of one float dtype, sums in f32."""

    name = "linear"
    streamed = ("weight",)

    @staticmethod
    def infer(x: TensorType, weight: TensorType, bias: TensorType | None = None) -> TensorType:
        need_float(x, "x")
        need_rank(weight, 2, "weight")
        need(x.rank >= 1 and x.shape[-1] == weight.shape[1], f"x {x} and weight {weight} differ in their last axis")
        if bias is not None:
            need_shape(bias, weight.shape[:1], "bias")
        need_same_dtype("x, weight and bias", x, weight, *([bias] if bias is not None else []))
        return x.with_shape(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def reference(x: Array, weight: Array, bias: Array | None = None) -> Array:
        y = project(np.reshape(x, (-1, x.shape[-1])), weight)
        y = y if bias is None else y + np.asarray(bias, dtype=np.float64)
        return np.asarray(y).reshape(*x.shape[:-1], len(weight))

    @staticmethod
    def flops(x: TensorType, weight: TensorType, bias: TensorType | None = None) -> Dim:
        return 2 * x.elements * weight.shape[0]


class Matmul(OpDef):
    """a @ b: [..., M, K] and [..., K, N] give [..., M, N]; leading axes broadcast; one dtype, float sums in f32."""

    name = "matmul"

    @staticmethod
    def infer(a: TensorType, b: TensorType) -> TensorType:
        need(a.rank >= 2 and b.rank >= 2, f"both operands need at least 2 axes, not {a} and {b}")
        need(a.shape[-1] == b.shape[-2], f"{a} and {b} do not agree in the summed axis")
        need(not is_packed(a.dtype), f"a packed weight must be dequantized first: {a}")
        need_same_dtype("a and b", a, b)
        return a.with_shape(*broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])

    @staticmethod
    def reference(a: Array, b: Array) -> Array:
        if a.dtype.kind in "iub":
            return np.asarray(np.matmul(a, b))
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        result = np.empty((*batch, a.shape[-2], b.shape[-1]), np.float64)
        left = np.broadcast_to(a, (*batch, *a.shape[-2:]))
        right = np.broadcast_to(np.swapaxes(b, -1, -2), (*batch, b.shape[-1], b.shape[-2]))
        for at in np.ndindex(*batch):
            result[at] = project(left[at], right[at])
        return result

    @staticmethod
    def flops(a: TensorType, b: TensorType) -> Dim:
        return 2 * Matmul.infer(a, b).elements * a.shape[-1]


class Embedding(OpDef):
    """Rows of a table: ids of any shape, weight [V, D] give [*ids, D] in the weight's dtype."""

    name = "embedding"
    streamed = ("weight",)

    @staticmethod
    def infer(ids: TensorType, weight: TensorType) -> TensorType:
        need_integer(ids, "ids")
        need_rank(weight, 2, "weight")
        need(not is_packed(weight.dtype), f"a packed weight must be dequantized first: {weight}")
        return weight.with_shape(*ids.shape, weight.shape[1])

    @staticmethod
    def reference(ids: Array, weight: Array) -> Array:
        return np.asarray(weight[np.asarray(ids)])

    @staticmethod
    def flops(ids: TensorType, weight: TensorType) -> Dim:
        return 0

    @classmethod
    def bytes(cls, operands: Sequence[Type | None], results: Sequence[Type]) -> Dim:
        """Only the rows that are looked up are read."""
        ids, result = operands[0], results[0]
        if not (isinstance(ids, TensorType) and isinstance(result, TensorType)):
            raise TypeRuleError("takes tensors")
        return tensor_bytes(ids) + 2 * tensor_bytes(result)


class Dequantize(OpDef):
    """The elements of a block-quantized weight as floats: q4_k[N, K] gives dtype[N, K].

    The reference takes the raw bytes `uint8[N, packed K]` and, as they do not say so themselves, their `format`.
    """

    name = "dequantize"
    streamed = ("weight",)

    @staticmethod
    def infer(weight: TensorType, *, dtype: str = "f32") -> TensorType:
        need(is_packed(weight.dtype), f"takes a block-quantized weight ({', '.join(FORMATS)}), not {weight}")
        need(dtype in FLOATS, f"dtype must be a float, not {dtype!r}")
        return weight.with_dtype(dtype)

    @staticmethod
    def reference(weight: Array, *, dtype: str = "f32", format: str) -> Array:
        return unpack(weight, format).astype(numpy_dtype(dtype), copy=False)

    @staticmethod
    def flops(weight: TensorType, *, dtype: str = "f32") -> Dim:
        return 2 * weight.elements
