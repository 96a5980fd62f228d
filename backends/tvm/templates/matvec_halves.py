"""Packed weights as bfloat16 codes, which are exact, times pairs of bfloat16 x: float32 sums for each group.

Two columns an instruction. A word of codes comes apart by shifts into pairs of columns k and k+2, so x lies crossed:
columns 0 2 1 3 of every four.
"""

from __future__ import annotations

from irx.backends.tvm.templates.instructions import code_halves, dot_pairs
from irx.backends.tvm.templates.matvec_grouped import Grouped
from irx.backends.tvm.writer import constant, splat


class Halves(Grouped):
    """Sums of codes times bfloat16 numbers."""

    def first_sums(self, row: int) -> list[str]:
        """One sum."""
        return [self.w.register(constant(0.0))]

    def parts(self, entry: str, vector: str) -> list[str]:
        """Pairs of bfloat16 codes."""
        word = self.word(entry, vector)
        if self.coding.bits == 4:
            moved = [(word, shift) for shift in (0, 8, 4, 12)]
        else:
            moved = [(quad, shift) for quad in self.quads(word, entry, vector) for shift in (0, 8)]
        places = (f"T.shift_right({bits}, {splat(str(shift))})" if shift else bits for bits, shift in moved)
        return [self.w.register(code_halves(self.coding, place), dtype="int32") for place in places]

    def dot(self, total: str, weights: str, x: str) -> str:
        """Two bfloat16 numbers of each lane."""
        return dot_pairs(total, weights, x)

    def finish(self, sums: list[list[str]], vector: str) -> None:
        """The sums of codes times scales, and those of x times minima."""
        scale = self.w.register(self.scale("scales", "super_scales", vector))
        minimum = self.minimum(vector)
        for row, (codes,) in enumerate(sums):
            total = self.total(row, vector)
            more = f" + {self.part(row, 'sums', 'g', 'sf')} * {minimum}" if minimum else ""
            self.w(f"{total} = {total} + {codes} * {scale}{more}")
