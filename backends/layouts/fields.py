"""From the raw bytes of packed rows to the arrays that tiles are made of, without unpacking a code.

Words are 32 bits. A word of 4-bit codes holds elements k to k+3 in the low halves of its bytes and k+4 to k+7 in the
high ones; a word of 8-bit codes holds four. A second plane holds the upper bits of 5- and 6-bit codes: with b of them,
byte j of a word has those of element k + 4 i + j at bit b i.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from irx.ir.blocks import FORMATS, OWN_GROUPS, Bytes

Fields: TypeAlias = Mapping[str, np.ndarray[Any, Any]]
"""Arrays `[rows, n]` by part: codes and high as uint32, float16 ones as their bits, small scales as bytes."""

_Splitter: TypeAlias = Callable[[Bytes], Fields]
_LOW = np.uint32(0x0F0F0F0F)
_HIGH = np.uint32(0xF0F0F0F0)


def split(raw: Bytes, form: str) -> Fields:
    """The parts of raw rows `uint8[rows, bytes]`, each `[rows, what belongs to a row]`."""
    rows, blocks = len(raw), raw.reshape(-1, FORMATS[form].bytes)
    return {name: np.ascontiguousarray(part).reshape(rows, -1) for name, part in _SPLITTERS[form](blocks).items()}


def _halves(blocks: Bytes, at: int) -> Any:
    """The float16 at byte `at` of every block, as bits."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<u2")


def _words(blocks: Bytes, start: int, end: int) -> Any:
    return np.ascontiguousarray(blocks[:, start:end]).view("<u4")


def _nibbles(blocks: Bytes, start: int, end: int, width: int) -> Any:
    """Words of 4-bit codes from pieces of `width` bytes whose low halves come before their high halves."""
    pairs = _words(blocks, start, end).reshape(len(blocks), -1, width // 8, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    words = np.empty((*pairs.shape[:2], 2, width // 8), np.uint32)
    words[:, :, 0] = (first & _LOW) | (second & _LOW) << np.uint32(4)
    words[:, :, 1] = (first & _HIGH) >> np.uint32(4) | (second & _HIGH)
    return words


def _gathered(words: Any, bits: int) -> Any:
    """`[..., m]` words with the wanted bits at the bottom of every byte, as one word each."""
    result = words[..., 0].copy()
    for i in range(1, words.shape[-1]):
        result |= words[..., i] << np.uint32(bits * i)
    return result


def _q8_0(blocks: Bytes) -> Fields:
    return {"codes": _words(blocks, 2, 34) ^ np.uint32(0x80808080), "scales": _halves(blocks, 0)}


def _q4_0(blocks: Bytes) -> Fields:
    return {"codes": _nibbles(blocks, 2, 18, 16), "scales": _halves(blocks, 0)}


def _q4_1(blocks: Bytes) -> Fields:
    return {"codes": _nibbles(blocks, 4, 20, 16), "scales": _halves(blocks, 0), "minima": _halves(blocks, 2)}


def _fifth_bits(blocks: Bytes, at: int) -> Any:
    bits = np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little").reshape(-1, 8, 4)
    return np.packbits(bits.transpose(0, 2, 1), axis=2, bitorder="little").reshape(-1, 4).view("<u4")


def _q5_0(blocks: Bytes) -> Fields:
    return {"codes": _nibbles(blocks, 6, 22, 16), "high": _fifth_bits(blocks, 2), "scales": _halves(blocks, 0)}


def _q5_1(blocks: Bytes) -> Fields:
    codes, high = _nibbles(blocks, 8, 24, 16), _fifth_bits(blocks, 4)
    return {"codes": codes, "high": high, "scales": _halves(blocks, 0), "minima": _halves(blocks, 2)}


def _two_levels(blocks: Bytes) -> Fields:
    """The scales and minima of q4_k and q5_k, see `irx.ir.blocks`: 6 bits each, spread over bytes 4 to 15."""
    low_scales, low_minima, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    return {
        "scales": np.concatenate([low_scales & 63, (rest & 15) | (low_scales >> 6 << 4)], axis=1),
        "minima": np.concatenate([low_minima & 63, (rest >> 4) | (low_minima >> 6 << 4)], axis=1),
        "super_scales": _halves(blocks, 0),
        "super_minima": _halves(blocks, 2),
    }


def _q4_k(blocks: Bytes) -> Fields:
    return {"codes": _nibbles(blocks, 16, 144, 32), **_two_levels(blocks)}


def _q5_k(blocks: Bytes) -> Fields:
    planes = np.arange(8, dtype=np.uint32)[:, None]
    high = _words(blocks, 16, 48)[:, None] >> planes & np.uint32(0x01010101)
    return {"codes": _nibbles(blocks, 48, 176, 32), "high": _gathered(high, 1), **_two_levels(blocks)}


def _q6_k(blocks: Bytes) -> Fields:
    planes = np.arange(0, 8, 2, dtype=np.uint32)[:, None, None]
    sources = _words(blocks, 128, 192).reshape(-1, 2, 1, 2, 4)
    high = _gathered(sources >> planes & np.uint32(0x03030303), 2)
    codes, scales = _nibbles(blocks, 0, 128, 64), blocks[:, 192:208]
    return {"codes": codes, "high": high, "scales": scales, "super_scales": _halves(blocks, 208)}


def _i8(blocks: Bytes) -> Fields:
    group = blocks.shape[1] - 2
    return {"codes": _words(blocks, 0, group) ^ np.uint32(0x80808080), "scales": _halves(blocks, group)}


def _i4(blocks: Bytes) -> Fields:
    end = blocks.shape[1] - 2
    return {"codes": _nibbles(blocks, 0, end, min(end, 16)), "scales": _halves(blocks, end)}


def _u4(blocks: Bytes) -> Fields:
    end = blocks.shape[1] - 4
    codes = _nibbles(blocks, 0, end, min(end, 16))
    return {"codes": codes, "scales": _halves(blocks, end), "minima": _halves(blocks, end + 2)}


_SPLITTERS: dict[str, _Splitter] = {
    "q8_0": _q8_0,
    "q4_0": _q4_0,
    "q4_1": _q4_1,
    "q5_0": _q5_0,
    "q5_1": _q5_1,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
    **{f"i8g{group}": _i8 for group in OWN_GROUPS},
    **{f"i4g{group}": _i4 for group in OWN_GROUPS},
    **{f"u4g{group}": _u4 for group in OWN_GROUPS},
}
