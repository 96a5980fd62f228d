"""Block-quantized storage: weights kept as packed bytes, a few bits an element plus scales for every block of a row.

A packed weight has the logical shape `[..., K]` and is stored as `uint8[..., K / elements * bytes]`. Blocks never cross
rows, so any reordering of rows is a reordering of raw rows. The layouts `q...` are those of GGML; for groups that GGML
does not have there are own ones, of group size G:

    i8gG   G signed codes of 8 bits, f16 scale                      value = scale * code
    i4gG   G codes of 4 bits, f16 scale                             value = scale * (code - 8)
    u4gG   G codes of 4 bits, f16 scale, f16 minimum                value = scale * code + minimum

Codes of 4 bits are stored as in q4_0: 16 bytes for every 32 elements, elements 0 to 15 in the low halves, 16 to 31 in
the high ones (8 bytes likewise for a group of 16). `unpack` is the definition of what the bytes mean, and every packed
kernel is judged against it; `irx.ir.packing` makes them. All arithmetic is float32 in a fixed order: `scale * q`, or
`scale * q + minimum`, each operation rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Bytes: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]
Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]

_BLOCKS_AT_ONCE = 1 << 16  # bounds the temporaries of unpack to a few tens of MB, whatever the size of the weight


@dataclass(frozen=True)
class BlockFormat:
    """A storage format: `elements` consecutive elements of a row take `bytes` bytes, scales included.

    `halves` are the bytes at which a float16 starts. What a block means is linear in these.
    """

    name: str
    elements: int
    bytes: int
    halves: tuple[int, ...]

    @property
    def bits(self) -> float:
        """Bits an element takes, scales included."""
        return 8 * self.bytes / self.elements

    def packed_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the raw bytes of a weight of the logical `shape`. Raises ValueError for a row of part blocks."""
        return (*shape[:-1], self._blocks(shape[-1], self.elements, "elements") * self.bytes)

    def logical_shape(self, packed: Sequence[int]) -> tuple[int, ...]:
        """The shape in elements of raw bytes of shape `packed`. Raises ValueError for a row of part blocks."""
        return (*packed[:-1], self._blocks(packed[-1], self.bytes, "bytes") * self.elements)

    def _blocks(self, size: int, block: int, unit: str) -> int:
        if size % block:
            raise ValueError(f"a row of {size} {unit} is not a whole number of {self.name} blocks of {block}")
        return size // block


OWN_GROUPS = (16, 64, 128, 256)
"""Group sizes of the own formats; GGML's q8_0, q4_0 and q4_1 are those of 32."""

FORMATS: dict[str, BlockFormat] = {
    form.name: form
    for form in (
        BlockFormat("q4_0", 32, 18, (0,)),
        BlockFormat("q4_1", 32, 20, (0, 2)),
        BlockFormat("q5_0", 32, 22, (0,)),
        BlockFormat("q5_1", 32, 24, (0, 2)),
        BlockFormat("q8_0", 32, 34, (0,)),
        BlockFormat("q4_k", 256, 144, (0, 2)),
        BlockFormat("q5_k", 256, 176, (0, 2)),
        BlockFormat("q6_k", 256, 210, (208,)),
        *(BlockFormat(f"i8g{group}", group, group + 2, (group,)) for group in OWN_GROUPS),
        *(BlockFormat(f"i4g{group}", group, group // 2 + 2, (group // 2,)) for group in OWN_GROUPS),
        *(BlockFormat(f"u4g{group}", group, group // 2 + 4, (group // 2, group // 2 + 2)) for group in OWN_GROUPS),
    )
}


def unpack(raw: Bytes, form: BlockFormat | str) -> Floats:
    """The float32 values `[..., K]` of the packed bytes `raw`, `uint8[..., K / elements * bytes]`.

    Raises KeyError for an unknown format name, ValueError when the rows are not whole blocks, TypeError when `raw` is
    not uint8.
    """
    form = FORMATS[form] if isinstance(form, str) else form
    if raw.dtype != np.uint8:
        raise TypeError(f"packed weights are uint8, not {raw.dtype}")
    values = np.empty(form.logical_shape(raw.shape), np.float32)
    blocks, flat = raw.reshape(-1, form.bytes), values.reshape(-1, form.elements)
    decode = _DECODERS[form.name]
    for start in range(0, len(blocks), _BLOCKS_AT_ONCE):
        some = slice(start, start + _BLOCKS_AT_ONCE)
        flat[some] = decode(blocks[some])
    return values


def _half(blocks: Bytes, at: int) -> Floats:
    """The float16 stored at byte `at` of every block, as float32 `[n, 1]`."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(codes: Bytes) -> Bytes:
    """Low halves of all bytes, then high halves: `[..., n]` to `[..., 2 n]`."""
    return np.concatenate([codes & 15, codes >> 4], axis=-1)


def _fifth_bits(blocks: Bytes, at: int) -> Bytes:
    """The fifth bits of 32 elements, one bit each in 4 bytes from `at`, moved to their place in the code: `[n, 32]`."""
    return np.unpackbits(blocks[:, at : at + 4], axis=-1, bitorder="little") << np.uint8(4)


def _q4_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _q4_1(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).astype(np.float32) + _half(blocks, 2)


def _q5_0(blocks: Bytes) -> Floats:
    codes = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)
    return _half(blocks, 0) * (codes.astype(np.float32) - 16)


def _q5_1(blocks: Bytes) -> Floats:
    codes = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4)
    return _half(blocks, 0) * codes.astype(np.float32) + _half(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _scales_and_minima(blocks: Bytes) -> tuple[Floats, Floats]:
    """Eight 6-bit scales and minima from bytes 4 to 15, times the block's own two halves: two `[n, 8, 1]` arrays.

    Bytes 4-7 hold scales 0-3 and bytes 8-11 minima 0-3 in their low six bits; bytes 12-15 hold the low nibbles of
    scales 4-7 and, above them, of minima 4-7, whose upper two bits sit atop the first eight bytes.
    """
    low_scales, low_minima, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([low_scales & 63, (rest & 15) | (low_scales >> 6 << 4)], axis=-1)
    minima = np.concatenate([low_minima & 63, (rest >> 4) | (low_minima >> 6 << 4)], axis=-1)
    scale = _half(blocks, 0) * scales.astype(np.float32)
    minimum = _half(blocks, 2) * minima.astype(np.float32)
    return scale[:, :, None], minimum[:, :, None]


def _q4_k(blocks: Bytes) -> Floats:
    scale, minimum = _scales_and_minima(blocks)
    codes = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return (scale * codes.astype(np.float32) - minimum).reshape(-1, 256)


def _q5_k(blocks: Bytes) -> Floats:
    scale, minimum = _scales_and_minima(blocks)
    low = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    planes = np.arange(8, dtype=np.uint8)[:, None]
    high = (blocks[:, None, 16:48] >> planes & 1) << 4
    return (scale * (low | high).astype(np.float32) - minimum).reshape(-1, 256)


def _q6_k(blocks: Bytes) -> Floats:
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3) << 4
    codes = (low | high).reshape(-1, 16, 16).astype(np.float32) - 32
    scale = _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return (scale[:, :, None] * codes).reshape(-1, 256)


def _codes(blocks: Bytes, group: int) -> Floats:
    """The 4-bit codes of a group, from its first bytes, as float32 `[n, group]`."""
    width = min(group, 32) // 2
    pieces = blocks[:, : group // 2].reshape(len(blocks), -1, width)
    return _nibbles(pieces).reshape(len(blocks), group).astype(np.float32)


def _i8(blocks: Bytes) -> Floats:
    group = blocks.shape[1] - 2
    return _half(blocks, group) * blocks[:, :group].view(np.int8).astype(np.float32)


def _i4(blocks: Bytes) -> Floats:
    half = blocks.shape[1] - 2
    return _half(blocks, half) * (_codes(blocks, 2 * half) - 8)


def _u4(blocks: Bytes) -> Floats:
    half = blocks.shape[1] - 4
    return _half(blocks, half) * _codes(blocks, 2 * half) + _half(blocks, half + 2)


_DECODERS: dict[str, Callable[[Bytes], Floats]] = {
    "q4_0": _q4_0,
    "q4_1": _q4_1,
    "q5_0": _q5_0,
    "q5_1": _q5_1,
    "q8_0": _q8_0,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
    **{f"i8g{group}": _i8 for group in OWN_GROUPS},
    **{f"i4g{group}": _i4 for group in OWN_GROUPS},
    **{f"u4g{group}": _u4 for group in OWN_GROUPS},
}
