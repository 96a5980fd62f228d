"""Ops that change only how precisely numbers are held: weights packed into blocks, activations rounded to a grid."""

from __future__ import annotations

import numpy as np

from irx.errors import TypeRuleError
from irx.ir.blocks import FORMATS
from irx.ir.codes import CODES
from irx.ir.dims import Dim
from irx.ir.opdef import Array, OpDef
from irx.ir.packing import is_writable, pack
from irx.ir.types import TensorType
from irx.ops.shapes import need, need_float

SMALLEST = 2.0**-100
"""Groups of activations whose largest magnitude is below this become zero, so that no scale is subnormal."""
HALF_MAX = 65504.0
"""The largest float16."""
RELATIVE_STEP, LEAST_STEP = 0.0005, 0.6 * 2.0**-24
"""A float16 plus or minus its magnitude times the first, and the second, rounds to its neighbour or one further on."""


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


def token_codes(x: Array, bits: int) -> tuple[Array, Array, Array]:
    """Rows [..., D] as codes of `bits` bits (in float32), and each row's step and lowest value [..., 1] in float16.

    The asymmetric uniform quantiser: x is about code * step + lowest. Lowest is rounded down and the step up, so that
    no element is further than half a step from its code; a row of one value has a step of 1. Magnitudes above 65504,
    which float16 does not have, are cut there.
    """
    top = np.float32(2**bits - 1)
    rows = np.clip(np.asarray(x, dtype=np.float32), -HALF_MAX, HALF_MAX)
    least, most = rows.min(axis=-1, keepdims=True), rows.max(axis=-1, keepdims=True)
    low = least.astype(np.float16).astype(np.float32)
    low = np.where(low > least, _half(low - _next_half(low)), low)
    step = _half((most - low) / top)
    step = np.where(step * top + low < most, _half(step + _next_half(step)), step)
    step = np.where(step == 0, np.float32(1), step)
    codes = np.clip(np.rint((rows - low) * (np.float32(1) / step)), 0, top)
    return codes, step.astype(np.float16), low.astype(np.float16)


def _half(x: Array) -> Array:
    """Rounded to float16, in float32."""
    return np.asarray(np.clip(x, -HALF_MAX, HALF_MAX).astype(np.float16).astype(np.float32))


def _next_half(x: Array) -> Array:
    """What takes a float16 to its neighbour, when it is added or subtracted and the sum is rounded."""
    return np.asarray(np.abs(x) * np.float32(RELATIVE_STEP) + np.float32(LEAST_STEP))


class RoundTokens(OpDef):
    """x [..., D] as a cache of `code` token8 or token4 returns it: each row rounded to its own grid of 8 or 4 bits.

    A row's lowest value and step are float16, and an element is at most half a step from what it becomes.
    """

    name = "round_tokens"

    @staticmethod
    def infer(x: TensorType, *, code: str) -> TensorType:
        need_float(x, "x")
        need(code in CODES, f"there is no code {code!r}; there are {', '.join(CODES)}")
        need(x.rank >= 1, "x must have an axis")
        return x

    @staticmethod
    def reference(x: Array, *, code: str) -> Array:
        codes, step, low = token_codes(x, CODES[code])
        return np.asarray((codes * step.astype(np.float64) + low).astype(np.asarray(x).dtype))

    @staticmethod
    def flops(x: TensorType, *, code: str) -> Dim:
        return 6 * x.elements
