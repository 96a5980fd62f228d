"""Positions: rotary embedding, and biases that depend on the distance between query and key."""

from __future__ import annotations

import numpy as np

from irx.ir.dims import Dim
from irx.ir.opdef import Array, OpDef
from irx.ir.types import TensorType
from irx.ops.shapes import need, need_float, need_integer, need_rank

_STYLES = ("half", "interleaved")


class Rope(OpDef):
    """Rotary position embedding of x [B, H, S, D] by angles positions * inv_freq (Su et al. 2021, arXiv:2104.09864).

    positions [1|B, S] integers, inv_freq [R/2]: the first R channels are rotated, the others pass through. Pairs are
    (i, i + R/2) for style half and (2i, 2i + 1) for interleaved, in the result as in x. cos and sin are computed in f32
    and multiplied by `scale`; the result has x's dtype.
    """

    name = "rope"

    @staticmethod
    def infer(
        x: TensorType, positions: TensorType, inv_freq: TensorType, *, style: str = "half", scale: float = 1.0
    ) -> TensorType:
        need(style in _STYLES, f"style must be one of {', '.join(_STYLES)}, not {style!r}")
        need_float(x, "x")
        need_rank(x, 4, "x")
        need_integer(positions, "positions")
        fits = positions.rank == 2 and positions.shape[0] in (1, x.shape[0]) and positions.shape[1] == x.shape[2]
        need(fits, f"positions {positions} do not fit x {x}: [1 or B, S] is needed")
        need_rank(inv_freq, 1, "inv_freq")
        rotated, channels = 2 * inv_freq.shape[0], x.shape[3]
        known = isinstance(rotated, int) and isinstance(channels, int)
        need(not known or rotated <= channels, f"{rotated} rotated channels, but x has {channels}")  # type: ignore[operator]
        return x

    @staticmethod
    def reference(x: Array, positions: Array, inv_freq: Array, *, style: str = "half", scale: float = 1.0) -> Array:
        angles = np.asarray(positions)[:, None, :, None] * np.asarray(inv_freq)
        cos, sin = np.cos(angles) * scale, np.sin(angles) * scale
        half = len(inv_freq)
        pairs = (
            (slice(0, 2 * half, 2), slice(1, 2 * half, 2))
            if style == "interleaved"
            else (
                slice(0, half),
                slice(half, 2 * half),
            )
        )
        first, second = x[..., pairs[0]], x[..., pairs[1]]
        result = np.array(x)
        result[..., pairs[0]] = first * cos - second * sin
        result[..., pairs[1]] = second * cos + first * sin
        return result

    @staticmethod
    def flops(
        x: TensorType, positions: TensorType, inv_freq: TensorType, *, style: str = "half", scale: float = 1.0
    ) -> Dim:
        pairs = x.shape[0] * x.shape[1] * x.shape[2] * inv_freq.shape[0]
        return 6 * pairs + 3 * positions.elements * inv_freq.shape[0]


class RelativeBias(OpDef):
    """A bias for every query and key from their distance: positions_q [B, S], table [H, L] give [B, H, S, keys].

    The element for query position p and key j is table[h, clamp(p - j, 0, L - 1)], in the table's dtype. Covers ALiBi
    (Press et al. 2021, arXiv:2108.12409) and the causal biases of T5 (Raffel et al. 2019, arXiv:1910.10683).
    """

    name = "relative_bias"

    @staticmethod
    def infer(positions_q: TensorType, table: TensorType, *, keys: Dim) -> TensorType:
        need_integer(positions_q, "positions_q")
        need_rank(positions_q, 2, "positions_q")
        need_rank(table, 2, "table")
        batch, rows = positions_q.shape
        return table.with_shape(batch, table.shape[0], rows, keys)

    @staticmethod
    def reference(positions_q: Array, table: Array, *, keys: int) -> Array:
        distance = np.asarray(positions_q)[:, :, None] - np.arange(keys)
        found = table[:, np.clip(distance, 0, table.shape[1] - 1)]
        return np.moveaxis(found, 0, 1)

    @staticmethod
    def flops(positions_q: TensorType, table: TensorType, *, keys: Dim) -> Dim:
        return positions_q.elements * keys
