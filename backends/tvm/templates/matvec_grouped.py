"""Sums of packed weights in groups: codes meet x in sums of their own, which scales bring into the totals.

for each group: for words of codes: sums of codes in registers; totals += scales * sums (+ minima * sums of x)
"""

from __future__ import annotations

from irx.backends.layouts.coding import Coding
from irx.backends.tvm.layouts.reading import half
from irx.backends.tvm.templates.instructions import prefetch
from irx.backends.tvm.templates.matvec_shape import Shape
from irx.backends.tvm.templates.matvec_sums import REGISTERS, Sums, Unit
from irx.backends.tvm.writer import LANES, Writer, constant, splat

WORDS = 8
"""Words of codes that are unrolled."""


def vectors_together(shape: Shape) -> int:
    """How many vectors' sums fit into registers at once."""
    return REGISTERS // (shape.most * (shape.planes if shape.way == "planes" else 1))


class Grouped(Sums):
    """The walk over groups; a subclass says how codes meet x. `together` vectors share x in registers."""

    def __init__(self, w: Writer, shape: Shape, unit: Unit) -> None:
        super().__init__(w, shape, unit)
        coding = self.layout.coding
        assert coding is not None
        self.coding: Coding = coding
        self.starts = {part: self.start(part) for part in self.layout.parts}
        self.step = shape.sum_group
        self.together = max(1, min(self.vectors, vectors_together(shape)))

    def word(self, entry: str, vector: str | int) -> str:
        """A register of 16 columns' words of codes."""
        self.fetch("codes", self.starts["codes"], entry, vector)
        return self.w.register(self.words("codes", self.starts["codes"], entry, vector), dtype="int32")

    def quads(self, word: str, entry: str, vector: str | int) -> list[str]:
        """The codes of a word as registers of unsigned bytes: k to k+3, and with 4 bits and more k+4 to k+7."""
        w, coding = self.w, self.coding
        if coding.bits == 8:
            return [word]
        mask = splat("252645135")
        quads = [
            w.register(f"T.bitwise_and({word}, {mask})", dtype="int32"),
            w.register(f"T.bitwise_and(T.shift_right({word}, {splat('4')}), {mask})", dtype="int32"),
        ]
        if not coding.high_bits:
            return quads
        count = coding.high_in_word // 8
        high = w.register(self.words("high", self.starts["high"], f"({entry}) // {count}", vector), dtype="int32")
        mask = splat(str(0x01010101 * ((1 << coding.high_bits) - 1)))
        for i, quad in enumerate(quads):
            shift = splat(f'T.cast((({entry}) % {count} * 2 + {i}) * {coding.high_bits}, "int32")')
            upper = f"T.bitwise_and(T.shift_right({high}, {shift}), {mask})"
            w(f"{quad} = T.bitwise_or({quad}, T.shift_left({upper}, {splat('4')}))")
        return quads

    def scale(self, part: str, above: str, vector: str | int) -> str:
        """Scales (or minima) of 16 columns for group `g`."""
        raw = self.words(part, self.starts[part], self._entry, vector)
        if not self.coding.super_group:
            return half(raw, self.shape.device)
        above_entry = f"g // {self.coding.super_group // self.step}"
        shared = half(self.words(above, self.starts[above], above_entry, vector), self.shape.device)
        return f'{shared} * T.cast({raw}, "float32x16")'

    @property
    def _entry(self) -> str:
        """The entry of the scales of group `g`."""
        return f"g // {self.coding.group // self.step}" if self.coding.group > self.step else "g"

    def minimum(self, vector: str | int) -> str:
        """A register of what is added for every unit of x, empty where there is nothing."""
        if not self.coding.has_minimum:
            return ""
        minimum = self.scale("minima", "super_minima", vector)
        return self.w.register(f"{constant(0.0)} - {minimum}" if self.coding.super_group else minimum)

    def first_sums(self, row: int) -> list[str]:
        """Registers for the sums of one group of a row with one vector: one for each plane of x."""
        raise TypeError(f"{type(self).__name__} does not define first_sums")

    def parts(self, entry: str, vector: str) -> list[str]:
        """Registers of what a word of codes comes apart into, each to meet 32 bits of x."""
        raise TypeError(f"{type(self).__name__} does not define parts")

    def dot(self, total: str, weights: str, x: str) -> str:
        """A sum with one more product."""
        raise TypeError(f"{type(self).__name__} does not define dot")

    def finish(self, sums: list[list[str]], vector: str) -> None:
        """Add the sums of group `g` of all rows with one vector to the totals."""
        raise TypeError(f"{type(self).__name__} does not define finish")

    def emit(self) -> None:
        """The totals of the unit."""
        self.clear()
        with self.w.block(f"for g in T.serial({self.shape.region.k // self.step}):"):
            if self.together == self.vectors:
                self._group(0)
                return
            # Two parts share x in registers; of more the sums would not fit, which only a loop keeps apart.
            loop = "unroll" if self.vectors == 2 * self.together else "serial"
            with self.w.block(f"for part in T.{loop}({self.vectors // self.together}):"):
                self._group(f"part * {self.together}")

    def _group(self, first: str | int) -> None:
        w = self.w
        sums = [[self.first_sums(row) for _ in range(self.together)] for row in range(self.most)]
        words = self.step // self.coding.codes_in_word
        self._fetch_scales(first)
        if words <= WORDS:
            with w.block(f"for kk in T.unroll({words}):"):
                self._multiply(sums, f"g * {words} + kk", first)
        else:
            with w.block(f"for kk_outer in T.serial({words // WORDS}):"), w.block(f"for kk in T.unroll({WORDS}):"):
                self._multiply(sums, f"g * {words} + kk_outer * {WORDS} + kk", first)
        for v in range(self.together):
            self.finish([row[v] for row in sums], f"({first} + {v})")

    def _fetch_scales(self, first: str | int) -> None:
        """Ask for the scales (and minima) of the group whose codes are asked for: a line is those of 32 columns."""
        ahead = self.shape.prefetch // (4 * self.layout.tile * self.coding.group // self.coding.codes_in_word)
        if not ahead:
            return
        for part in ("scales", "minima")[: 1 + self.coding.has_minimum]:
            for v in range(0, self.together, 2):
                place = f"({self._entry} + {ahead}) * {self.layout.tile} + ({first} + {v}) * {LANES}"
                self.w(prefetch(self.buffer(part), f"{self.starts[part]} + {place}"))

    def _multiply(self, sums: list[list[list[str]]], entry: str, first: str | int) -> None:
        """Add word `entry` of all vectors. Each 32 bits of x are loaded once for all of them."""
        vectors = [self.parts(entry, f"({first} + {v})") for v in range(self.together)]
        for i, parts in enumerate(zip(*vectors, strict=True)):
            for row in range(self.most):
                for plane in range(len(sums[row][0])):
                    place = f"{plane * self.shape.region.k // 4} + ({entry}) * {len(vectors[0])} + {i}"
                    x = self.x(row, place, "sw")
                    for v, part in enumerate(parts):
                        total = sums[row][v][plane]
                        self.w(f"{total} = {self.dot(total, part, x)}")
