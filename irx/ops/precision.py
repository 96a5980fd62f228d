"""Ops that change only how precisely numbers are held: weights packed into blocks, activations rounded to a grid."""

from __future__ import annotations

import numpy as np

from irx.errors import TypeRuleError
from irx.ir.blocks import FORMATS
from irx.ir.dims import Dim
from irx.ir.opdef import Array, OpDef
from irx.ir.packing import is_writable, pack
from irx.ir.types import TensorType
from irx.ops.shapes import need, need_float

SMALLEST = 2.0**-100
"""Groups of activations whose largest magnitude is below this become zero, so that no scale is subnormal."""


class Quantize(OpDef):
    """A float weight in a block format: f32[N, K] gives q8_0[N, K], every element rounded to its group's nearest value.

    The uniform quantiser of `irx.ir.packing`. The reference gives the raw bytes `uint8[N, packed K]`.
    """

    name = "quantize"

    @staticmethod
    def infer(weight: TensorType, *, format: str) -> TensorType:
        need_float(weight, "weight")
        need(format in FORMATS and is_writable(format), f"there is no format {format!r} that weights can be packed in")
        need(weight.rank >= 1, "weight must have an axis")
        columns, form = weight.shape[-1], FORMATS[format]
        whole = isinstance(columns, int) and columns % form.elements == 0
        need(whole, f"rows of {columns} elements are no whole blocks of {form.elements}")
        return weight.with_dtype(format)

    @staticmethod
    def reference(weight: Array, *, format: str) -> Array:
        return pack(np.asarray(weight), format)

    @staticmethod
    def flops(weight: TensorType, *, format: str) -> Dim:
        return 4 * weight.elements


class RoundActivations(OpDef):
    """x with every `group` elements of a row rounded to a grid of signed `bits`-bit codes: scale = max|x| / 127.

    Dynamic, one scale for each group of each row, as a kernel does it that multiplies codes: with float32 arithmetic
    code = round(x * (127 / max|x|)), ties to even, and the result is code * (max|x| / 127).
    """

    name = "round_activations"

    @staticmethod
    def infer(x: TensorType, *, bits: int = 8, group: int = 32) -> TensorType:
        need_float(x, "x")
        if not 2 <= bits <= 8:
            raise TypeRuleError(f"bits must be 2 to 8, not {bits}")
        need(x.rank >= 1, "x must have an axis")
        columns = x.shape[-1]
        whole = isinstance(columns, int) and group >= 1 and columns % group == 0
        need(whole, f"rows of {columns} elements are no whole groups of {group}")
        return x

    @staticmethod
    def reference(x: Array, *, bits: int = 8, group: int = 32) -> Array:
        codes = np.float32(2 ** (bits - 1) - 1)
        groups = np.asarray(x, dtype=np.float32).reshape(-1, group)
        largest = np.abs(groups).max(axis=1, keepdims=True)
        largest = np.where(largest < SMALLEST, np.float32(0), largest)
        with np.errstate(divide="ignore", invalid="ignore"):
            inverse = np.where(largest == 0, np.float32(0), codes / largest)
            rounded = np.rint(groups * inverse) * (largest / codes)
        return np.asarray(rounded.reshape(np.shape(x)).astype(np.asarray(x).dtype))

    @staticmethod
    def flops(x: TensorType, *, bits: int = 8, group: int = 32) -> Dim:
        return 4 * x.elements
