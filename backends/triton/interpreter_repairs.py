"""Repairs of Triton's CPU interpreter, without which bfloat16 kernels give wrong numbers there.

1. bfloat16 products, arithmetic, comparisons and reductions work on raw bits (triton issues 11584, 11604).
2. float32 to bfloat16 cuts instead of rounding to nearest even.
3. In 3.9 a scalar truth value that is spread becomes int32, and masks made of it are refused.
4. numpy 2.4 turns no array of one element into an int (issue 9171).
5. Before 3.9 a fused product and sum rounds twice, so what a product has lost cannot be found with it.

`apply` changes the interpreter of this process. Checked with triton 3.6, 3.7 and 3.9.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

BITWISE = (np.bitwise_and, np.bitwise_or, np.bitwise_xor)


def widened(bits: Any) -> Any:
    """float32 numbers of bfloat16 bits."""
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32).reshape(np.shape(bits))


def narrowed(values: Any) -> Any:
    """bfloat16 bits nearest to float32 numbers, ties to even; NaN stays one."""
    shape = np.shape(values)
    numbers = np.ascontiguousarray(values, dtype=np.float32)
    bits = numbers.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
    kept = np.where(np.isnan(numbers), ((bits >> np.uint32(16)) | np.uint32(0x40)).astype(np.uint16), rounded)
    return kept.reshape(shape)[()]


def apply() -> None:
    """Repair the interpreter of this process, which must have imported triton with TRITON_INTERPRET=1."""
    import triton.language as tl
    from triton.runtime import interpreter

    _Repairs(tl, interpreter).apply()


class _Repairs:
    def __init__(self, tl: Any, interpreter: Any) -> None:
        self.tl, self.interpreter = tl, interpreter
        self.builder, self.handle = interpreter.InterpreterBuilder, interpreter.TensorHandle

    def apply(self) -> None:
        self._arithmetic()
        self._casts()
        self._reductions()
        self._indices()

    def _is_bf16(self, value: Any) -> bool:
        if not isinstance(value, self.handle) or value.dtype.scalar != self.tl.bfloat16:
            return False
        return bool(np.asarray(value.data).dtype == np.uint16)

    def _f32(self, value: Any) -> Any:
        return self.handle(widened(value.data), self.tl.float32) if self._is_bf16(value) else value

    def _bf16(self, values: Any) -> Any:
        return self.handle(narrowed(values), self.tl.bfloat16)

    def _arithmetic(self) -> None:
        binary, unary = self.builder.binary_op, self.builder.unary_op
        dot, fma = self.builder.create_dot, self.builder.create_fma

        def binary_op(builder: Any, left: Any, right: Any, op: Callable[..., Any]) -> Any:
            if op not in BITWISE and (self._is_bf16(left) or self._is_bf16(right)):
                made = op(self._f32(left).data, self._f32(right).data)
                return self.handle(made, self.tl.int1) if made.dtype == np.bool_ else self._bf16(made)
            result = binary(builder, left, right, op)
            truth = np.asarray(result.data).dtype == np.bool_
            return self.handle(result.data, self.tl.int1) if truth else result

        def unary_op(builder: Any, value: Any, op: Callable[..., Any]) -> Any:
            return self._bf16(op(widened(value.data))) if self._is_bf16(value) else unary(builder, value, op)

        def create_dot(builder: Any, a: Any, b: Any, *rest: Any) -> Any:
            return dot(builder, self._f32(a), self._f32(b), *rest)

        def create_fma(builder: Any, x: Any, y: Any, z: Any) -> Any:
            if self._is_bf16(x):
                return self._bf16(widened(x.data) * widened(y.data) + widened(z.data))
            if x.dtype.scalar != self.tl.float32:
                return fma(builder, x, y, z)
            exact = x.data.astype(np.float64) * y.data + z.data  # products of two float32 have no more digits
            return self.handle(exact.astype(np.float32), self.tl.float32)

        self.builder.binary_op, self.builder.unary_op = binary_op, unary_op
        self.builder.create_dot, self.builder.create_fma = create_dot, create_fma

    def _casts(self) -> None:
        cast, convert = self.builder.cast_impl, self.builder.create_fp_to_fp

        def cast_impl(builder: Any, source: Any, target: Any) -> Any:
            wanted, bf16 = target.scalar, self.tl.bfloat16
            if self._is_bf16(source) and wanted != bf16:
                wide = self._f32(source)
                return wide if wanted == self.tl.float32 else cast(builder, wide, target)
            if wanted == bf16 and source.dtype.scalar != bf16:
                return self._bf16(np.asarray(source.data).astype(np.float32))
            return cast(builder, source, target)

        def create_fp_to_fp(builder: Any, source: Any, target: Any, mode: Any) -> Any:
            if target.scalar == self.tl.bfloat16 and source.dtype.scalar == self.tl.float32:
                return cast_impl(builder, source, target)
            return convert(builder, source, target, mode)

        self.builder.cast_impl, self.builder.create_fp_to_fp = cast_impl, create_fp_to_fp

    def _reductions(self) -> None:
        reduce = self.interpreter.ReduceOps
        total, extreme = reduce.sum, reduce.min_max

        def sum(op: Any, x: Any) -> Any:
            if x.dtype.scalar != self.tl.bfloat16:
                return total(op, x)
            made = np.sum(widened(x.handle.data), axis=op.axis, keepdims=op.keep_dims, dtype=np.float32)
            return op.to_tensor(narrowed(made), x.dtype)

        def min_max(op: Any, given: Any, *how: Any, **more: Any) -> Any:
            x = given[0] if isinstance(given, tuple) else given
            if x.dtype.scalar != self.tl.bfloat16:
                return extreme(op, given, *how, **more)
            wide = op.to_tensor(widened(x.handle.data), self.tl.block_type(self.tl.float32, x.handle.data.shape))
            made = extreme(op, wide, *how, **more)
            if isinstance(made, tuple):
                return op.to_tensor(narrowed(made[0].handle.data), self.tl.bfloat16), made[1]
            is_value = np.asarray(made.handle.data).dtype == np.float32
            return op.to_tensor(narrowed(made.handle.data), self.tl.bfloat16) if is_value else made

        reduce.sum, reduce.min_max = sum, min_max

    def _indices(self) -> None:
        patch = self.interpreter._patch_lang_tensor

        def index(tensor: Any) -> int:
            return int(np.asarray(tensor.handle.data).reshape(-1)[0])

        def patched(tensor: Any, *scope: Any) -> Any:
            result = patch(tensor, *scope)
            if scope:
                scope[0].set_attr(tensor, "__index__", index)
            else:
                tensor.__index__ = index
            return result

        self.interpreter._patch_lang_tensor = patched
