"""Results of parts of an attention, left in memory with their log-sum-exps, and put together by whoever needs them.

A unit is one KV head of one row of the batch; its parts have seen different tokens, all for the same rows of queries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from irx.backends.regions.lowered import Temporary
from irx.backends.triton.templates.attention_arguments import Arguments
from irx.backends.triton.templates.attention_logits import LOWEST, State
from irx.backends.triton.writer import Writer
from irx.ir.dims import Dim

MERGED = 4096  # elements of results that are merged at once


@dataclass(frozen=True)
class Partials:
    """Results [units, parts, rows, channels] in float32, of tiles that are `width` wide, and log-sum-exps."""

    units: Dim
    parts: int
    rows: int
    channels: int
    width: int

    def leave(self, w: Writer, arguments: Arguments, left: str, y: str, state: State, mask: str) -> None:
        """Write results `y` [M, width] to the rows `left` [M, 1] of all parts; needs `d` [1, width]."""
        self._declare(arguments)
        w(f"left = {left}")
        w(f"tl.store(partial + left.to(tl.int64) * {self.channels} + d, {y}, mask={mask} & (d < {self.channels}))")
        w(f"some = {state.total} > 0.0")
        w(f"lse = tl.where(some, {state.top} + tl.log2(tl.where(some, {state.total}, 1.0)), {LOWEST})")
        w(f"tl.store(sums_of + left, lse[:, None], mask={mask})")

    def merge(self, w: Writer, count: str, used: str, tile: int, store: Callable[[str, str, str], None]) -> None:
        """Put together the first `count` rows of `unit`, some at a time, from those of its `part`s that are `used`.

        `store(row, value, mask)` writes rows of the result; a tile of queries has `tile` of them.
        """
        rows = min(tile, max(1, MERGED // (self.parts * self.width)))
        w(f"part = tl.arange(0, {self.parts})[None, :]")
        with w.block(f"for first in range(0, {count}, {rows}):"):
            w(f"r = first + tl.arange(0, {rows})[:, None]")
            w(f"wanted = r < {count}")
            w(f"place = (unit * {self.parts} + part) * {self.rows} + r")
            w(f"inside = ({used}) & wanted")
            w(f'lses = tl.load(sums_of + place, mask=inside, other={LOWEST}, cache_modifier=".cg")')
            w("weights = tl.exp2(lses - tl.max(lses, 1, keep_dims=True))")
            w("weights = weights / tl.sum(weights, 1, keep_dims=True)")
            w(f"each_d = tl.arange(0, {self.width})[None, None, :]")
            w(f"inside = inside[:, :, None] & (each_d < {self.channels})")
            w(f"found = partial + place.to(tl.int64)[:, :, None] * {self.channels} + each_d")
            w('found = tl.load(found, mask=inside, other=0.0, cache_modifier=".cg")')
            w("merged = tl.sum(found * weights[:, :, None], 1)")
            store("r", "merged", f"wanted & (d < {self.channels})")

    def _declare(self, arguments: Arguments) -> None:
        rows = self.units * self.parts * self.rows
        arguments.pointer("partial", "f32", Temporary("partial", rows * self.channels * 4))
        arguments.pointer("sums_of", "f32", Temporary("lse", rows * 4))
