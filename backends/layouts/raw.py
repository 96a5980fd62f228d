"""Back from the arrays of tiles to the raw bytes of packed rows: the inverse of `fields`, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from irx.backends.layouts.fields import Fields
from irx.ir.blocks import FORMATS, OWN_GROUPS, Bytes

_Joiner: TypeAlias = Callable[[Mapping[str, Any]], "tuple[Any, ...]"]
_LOW = np.uint32(0x0F0F0F0F)
_HIGH = np.uint32(0xF0F0F0F0)


def join(fields: Fields, form: str, columns: int) -> Bytes:
    """Raw rows `uint8[rows, bytes]` of `columns` elements from their parts, each `[rows, what belongs to a row]`."""
    rows = len(fields["codes"])
    blocks = rows * columns // FORMATS[form].elements
    pieces = _JOINERS[form]({name: part.reshape(blocks, -1) for name, part in fields.items()})
    return np.concatenate([_bytes(piece) for piece in pieces], axis=1).reshape(rows, -1)


def _bytes(piece: Any) -> Bytes:
    return np.ascontiguousarray(piece).reshape(len(piece), -1).view(np.uint8)


def _nibbles(codes: Any, width: int) -> Any:
    """Pieces of `width` bytes whose low halves come before their high halves."""
    words = codes.reshape(len(codes), -1, 2, width // 8)
    early, late = words[:, :, 0], words[:, :, 1]
    pairs = np.empty((*early.shape, 2), np.uint32)
    pairs[..., 0] = (early & _LOW) | (late & _LOW) << np.uint32(4)
    pairs[..., 1] = (early & _HIGH) >> np.uint32(4) | (late & _HIGH)
    return pairs


def _signed(codes: Any) -> Any:
    return codes ^ np.uint32(0x80808080)


def _fifth_bits(high: Any) -> Any:
    bits = np.unpackbits(_bytes(high), axis=1, bitorder="little").reshape(-1, 4, 8)
    return np.packbits(bits.transpose(0, 2, 1).reshape(-1, 32), axis=1, bitorder="little")


def _two_levels(f: Mapping[str, Any]) -> tuple[Any, ...]:
    scales, minima = f["scales"], f["minima"]
    low = np.concatenate([part[:, :4] & 63 | part[:, 4:] >> 4 << 6 for part in (scales, minima)], axis=1)
    return f["super_scales"], f["super_minima"], low, scales[:, 4:] & 15 | minima[:, 4:] << 4


def _q4_k(f: Mapping[str, Any]) -> tuple[Any, ...]:
    return (*_two_levels(f), _nibbles(f["codes"], 32))


def _q5_k(f: Mapping[str, Any]) -> tuple[Any, ...]:
    planes = np.arange(8, dtype=np.uint32)
    spread = f["high"][:, :, None] >> planes & np.uint32(0x01010101)  # [n, plane, word]
    high = np.bitwise_or.reduce(spread << planes[:, None], axis=1)
    return (*_two_levels(f), high, _nibbles(f["codes"], 32))


def _q6_k(f: Mapping[str, Any]) -> tuple[Any, ...]:
    planes = np.arange(0, 8, 2, dtype=np.uint32)
    spread = f["high"].reshape(-1, 2, 4, 2, 1) >> planes & np.uint32(0x03030303)  # [n, half, plane, piece, word]
    high = np.bitwise_or.reduce(spread << planes[:, None, None], axis=2)
    return _nibbles(f["codes"], 64), high, f["scales"], f["super_scales"]


def _u4(f: Mapping[str, Any]) -> tuple[Any, ...]:
    return *_i4(f), f["minima"]


def _i4(f: Mapping[str, Any]) -> tuple[Any, ...]:
    return _nibbles(f["codes"], min(16, 4 * f["codes"].shape[1])), f["scales"]


_JOINERS: dict[str, _Joiner] = {
    "q8_0": lambda f: (f["scales"], _signed(f["codes"])),
    "q4_0": lambda f: (f["scales"], _nibbles(f["codes"], 16)),
    "q4_1": lambda f: (f["scales"], f["minima"], _nibbles(f["codes"], 16)),
    "q5_0": lambda f: (f["scales"], _fifth_bits(f["high"]), _nibbles(f["codes"], 16)),
    "q5_1": lambda f: (f["scales"], f["minima"], _fifth_bits(f["high"]), _nibbles(f["codes"], 16)),
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
    **{f"i8g{group}": lambda f: (_signed(f["codes"]), f["scales"]) for group in OWN_GROUPS},
    **{f"i4g{group}": _i4 for group in OWN_GROUPS},
    **{f"u4g{group}": _u4 for group in OWN_GROUPS},
}
