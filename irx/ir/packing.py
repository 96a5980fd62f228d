"""Packing: floats to the bytes of a block format, by rounding every element to the nearest value of its group's grid.

The uniform quantiser: with codes of b bits a group gets the scale `max|x| / (2^(b-1) - 1)` for 8 bits; for 4 and 5
bits, so that all codes are used, `-x / 2^(b-1)` of its element x of largest magnitude; with a minimum, `(max - min) /
(2^b - 1)`. Scale and minimum are rounded to float16 first and codes are chosen for what is stored, so packing what was
unpacked changes nothing (scales below 2^-14 apart). The error of an element is at most half the scale; only in 4 and 5
bits without a minimum may elements near the opposite of the largest be off by one scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from irx.ir.blocks import FORMATS, OWN_GROUPS, BlockFormat, Bytes, Floats, unpack

_Encoder: TypeAlias = Callable[[Floats], "tuple[Bytes, ...]"]
_ELEMENTS_AT_ONCE = 1 << 21  # bounds the temporaries to some tens of MB, whatever the size of the weight
_MEASURED = 4096  # blocks whose elements say how large those of random bytes are
_LARGEST = np.float32(65504)  # of float16


def is_writable(form: str) -> bool:
    """True for formats that `pack` makes; the others are only read."""
    return form in _ENCODERS


def pack(values: np.ndarray[Any, Any], form: BlockFormat | str) -> Bytes:
    """The bytes `uint8[..., K / elements * bytes]` that stand for the floats `values[..., K]` in a format.

    Raises KeyError for an unknown format name, ValueError for one that is only read and for rows that are not whole
    blocks.
    """
    form = FORMATS[form] if isinstance(form, str) else form
    if not is_writable(form.name):
        raise ValueError(f"{form.name} is only read; packed are {', '.join(_ENCODERS)}")
    raw = np.empty(form.packed_shape(values.shape), np.uint8)
    groups, blocks = values.reshape(-1, form.elements), raw.reshape(-1, form.bytes)
    step = max(1, _ELEMENTS_AT_ONCE // form.elements)
    for start in range(0, len(blocks), step):
        some = slice(start, start + step)
        with np.errstate(invalid="ignore"):  # a group with a nan gets the scale nan, and any codes
            fields = _ENCODERS[form.name](groups[some].astype(np.float32))
        np.concatenate(fields, axis=1, out=blocks[some])
    return raw


def random_blocks(generator: np.random.Generator, shape: Sequence[int], form: BlockFormat | str) -> Bytes:
    """Random bytes of a weight of the logical `shape` `[..., K]`: any codes, and elements of a variance of about 1 / K.

    Their float16s, of either sign, are drawn of one size and then made that small, so that sums over rows stay near 1.
    """
    form = FORMATS[form] if isinstance(form, str) else form
    raw = generator.integers(0, 256, form.packed_shape(shape), dtype=np.uint8)
    blocks = raw.reshape(-1, form.bytes)
    drawn = (len(blocks), len(form.halves))
    halves = generator.uniform(0.5, 1, drawn) * generator.choice([-1, 1], drawn)
    _write_halves(blocks, form, halves)
    size = np.std(unpack(blocks[:_MEASURED], form), dtype=np.float64)
    _write_halves(blocks, form, halves * shape[-1] ** -0.5 / size)
    return raw


def _write_halves(blocks: Bytes, form: BlockFormat, halves: np.ndarray[Any, Any]) -> None:
    for place, half in zip(form.halves, halves.T, strict=True):
        blocks[:, place : place + 2] = half.astype("<f2").view(np.uint8).reshape(-1, 2)


def _q8_0(x: Floats) -> tuple[Bytes, ...]:
    scale, codes = _signed(x)
    return _half(scale), codes


def _i8(x: Floats) -> tuple[Bytes, ...]:
    scale, codes = _signed(x)
    return codes, _half(scale)


def _q4_0(x: Floats) -> tuple[Bytes, ...]:
    scale, codes = _all_codes(x, 4)
    return _half(scale), _nibbles(codes)


def _i4(x: Floats) -> tuple[Bytes, ...]:
    scale, codes = _all_codes(x, 4)
    return _nibbles(codes), _half(scale)


def _q4_1(x: Floats) -> tuple[Bytes, ...]:
    scale, minimum, codes = _between_extremes(x, 4)
    return _half(scale), _half(minimum), _nibbles(codes)


def _u4(x: Floats) -> tuple[Bytes, ...]:
    scale, minimum, codes = _between_extremes(x, 4)
    return _nibbles(codes), _half(scale), _half(minimum)


def _q5_0(x: Floats) -> tuple[Bytes, ...]:
    scale, codes = _all_codes(x, 5)
    return _half(scale), _fifth_bits(codes), _nibbles(codes & np.uint8(15))


def _q5_1(x: Floats) -> tuple[Bytes, ...]:
    scale, minimum, codes = _between_extremes(x, 5)
    return _half(scale), _half(minimum), _fifth_bits(codes), _nibbles(codes & np.uint8(15))


def _signed(x: Floats) -> tuple[Floats, Bytes]:
    """Scales and codes from -127 to 127."""
    scale = _scale(np.abs(x).max(axis=1, keepdims=True), 127)
    return scale, _round(x, scale).clip(-127, 127).astype(np.int8).view(np.uint8)


def _all_codes(x: Floats, bits: int) -> tuple[Floats, Bytes]:
    """Scales, negative where the element of largest magnitude is positive, and codes, of which the middle one is 0."""
    middle = 1 << bits - 1
    at = np.abs(x).argmax(axis=1, keepdims=True)
    largest = np.take_along_axis(x, at, axis=1)
    scale = np.copysign(_scale(np.abs(largest), middle, spare=0.01), -largest)
    return scale, (_round(x, scale) + middle).clip(0, 2 * middle - 1).astype(np.uint8)


def _between_extremes(x: Floats, bits: int) -> tuple[Floats, Floats, Bytes]:
    """Scales, minima rounded down, and codes."""
    most = (1 << bits) - 1
    low = x.min(axis=1, keepdims=True)
    nearest = _narrow(low)
    minimum = np.where(nearest > low, _step(nearest, -np.inf), nearest)
    scale = _scale(x.max(axis=1, keepdims=True) - minimum, most)
    return scale, minimum, _round(x - minimum, scale).clip(0, most).astype(np.uint8)


def _scale(extent: Floats, codes: int, spare: float = 0.5) -> Floats:
    """`extent / codes` as float16 has it, enlarged where the last code would be more than `spare` steps off."""
    scale = _narrow(extent / np.float32(codes))
    return np.where(extent > (codes + spare) * scale, _step(scale, np.inf), scale)


def _narrow(x: Floats) -> Floats:
    """The nearest finite float16, as float32."""
    return x.clip(-_LARGEST, _LARGEST).astype(np.float16).astype(np.float32)


def _step(x: Floats, towards: float) -> Floats:
    """The finite float16 next to `x`, as float32."""
    return np.nextafter(x.astype(np.float16), np.float16(towards)).astype(np.float32).clip(-_LARGEST, _LARGEST)


def _round(x: Floats, scale: Floats) -> Floats:
    """x in units of the scale, to the nearest whole number, ties to even; 0 where the scale is 0."""
    return np.rint(x / np.where(scale == 0, np.float32(1), scale))


def _half(x: Floats) -> Bytes:
    return x.astype("<f2").view(np.uint8)


def _fifth_bits(codes: Bytes) -> Bytes:
    """The fifth bit of every code, 8 a byte, the first of them lowest."""
    return np.packbits(codes >> 4, axis=1, bitorder="little")


def _nibbles(codes: Bytes) -> Bytes:
    """Two codes a byte: in every 32 of a row the first 16 in the low halves, the others above them."""
    rows, group = codes.shape
    width = min(group, 32) // 2
    halves = codes.reshape(rows, -1, 2, width)
    return (halves[:, :, 0] | halves[:, :, 1] << np.uint8(4)).reshape(rows, group // 2)


_ENCODERS: dict[str, _Encoder] = {
    "q8_0": _q8_0,
    "q4_0": _q4_0,
    "q4_1": _q4_1,
    "q5_0": _q5_0,
    "q5_1": _q5_1,
    **{f"i8g{group}": _i8 for group in OWN_GROUPS},
    **{f"i4g{group}": _i4 for group in OWN_GROUPS},
    **{f"u4g{group}": _u4 for group in OWN_GROUPS},
}
