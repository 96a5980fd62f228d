"""Which block format a matrix gets: how many elements share a scale.

`rtn` takes the group that was asked for, or the largest smaller one that divides the matrix's rows. `fine` is what
FineQuant chooses: the coarsest group whose halving would not shrink the typical range of a group by over a tenth, so
that only matrices with outliers get many scales.
"""

from __future__ import annotations

import numpy as np

from irx.ir.blocks import FORMATS
from irx.ir.opdef import Array

GROUPS = (256, 128, 64, 32, 16)
ONLY = {5: (32,)}
"""Groups of codes for which not all sizes have a format, by their bits."""
SHRINKS = 0.9
"""FineQuant's threshold: the group is halved while that multiplies the typical range by less than this."""

_GGML = {
    (8, True): "q8_0",
    (5, True): "q5_0",
    (5, False): "q5_1",
    (4, True): "q4_0",
    (4, False): "q4_1",
}  # groups of 32
_OWN = {(8, True): "i8g", (4, True): "i4g", (4, False): "u4g"}
_ELEMENTS_AT_ONCE = 1 << 22


def format_name(bits: int, symmetric: bool, group: int) -> str:
    """The block format of codes of `bits` bits with a scale (and, unless symmetric, a minimum) for every `group`."""
    return _GGML[bits, symmetric] if group == 32 else f"{_OWN[bits, symmetric]}{group}"


def fitting(columns: int, largest: int, bits: int) -> list[int]:
    """The groups of codes of `bits` bits that divide a row, largest first: up to `largest`, where there is a choice."""
    groups = ONLY.get(bits) or [group for group in GROUPS if group <= largest]
    return [group for group in groups if columns % group == 0]


def finest_needed(array: Array, groups: list[int]) -> int:
    """FineQuant's group for a matrix `[..., K]`, out of `groups`, coarsest first. (Kim et al. 2023.)"""
    chosen, *finer = groups
    extent = typical_range(array, chosen)
    for group in finer:
        narrower = typical_range(array, group)
        if narrower >= SHRINKS * extent:
            break
        chosen, extent = group, narrower
    return chosen


def typical_range(array: Array, group: int) -> float:
    """The mean over all groups of a matrix of their largest magnitude."""
    rows = array.reshape(-1, array.shape[-1])
    step = max(1, _ELEMENTS_AT_ONCE // rows.shape[1])
    total = 0.0
    for start in range(0, len(rows), step):
        piece = np.abs(rows[start : start + step].astype(np.float32))
        total += float(piece.reshape(-1, group).max(axis=1).sum(dtype=np.float64))
    return total * group / max(1, array.size)


def bits_of(form: str) -> float:
    """Bits an element of a format takes, scales included."""
    return FORMATS[form].bits
