"""The sums of one unit of work: a few rows of prepared x times 16, 32 or 64 output columns, kept in registers.

Every function leaves float32 totals in a buffer of the thread: row m, vector v at `(m * vectors + v) * 16`.
"""

from __future__ import annotations

from irx.backends.tvm.layouts.reading import half
from irx.backends.tvm.templates.instructions import dot_pairs
from irx.backends.tvm.templates.matvec_grouped import Grouped
from irx.backends.tvm.templates.matvec_halves import Halves
from irx.backends.tvm.templates.matvec_planes import Planes
from irx.backends.tvm.templates.matvec_shape import Shape
from irx.backends.tvm.templates.matvec_sums import Sums, Unit
from irx.backends.tvm.writer import Writer, constant, splat

CHAINS = 8
"""Sums that must be under way at once, or each multiplication waits for the one before it."""


def emit_product(w: Writer, shape: Shape, unit: Unit) -> str:
    """The totals of a unit: the name of their buffer."""
    kinds: dict[str, type[Sums]] = {"planes": Planes, "halves": Halves}
    other = _Floats if shape.layouts[unit.product].coding is None else _Widened
    sums = kinds.get(shape.way, other)(w, shape, unit)
    sums.emit()
    return sums.totals


class _Floats(Sums):
    """Weights that become float32, or meet x as pairs of bfloat16."""

    def emit(self) -> None:
        """Float weights: every word of weights meets its one or two columns of x."""
        in_step = 2 if self.layout.format == "bf16" else 1
        whole, unroll = self.shape.region.k // in_step, self.shape.unroll
        chains = max(1, min(unroll, CHAINS // (self.most * self.vectors)))
        sums = [
            [[self.w.register(constant(0.0)) for _ in range(chains)] for _ in range(self.vectors)]
            for _ in range(self.most)
        ]
        start = self.start("data")
        with self.w.block(f"for kk in T.serial({whole // unroll}):"):
            for j in range(unroll):
                self._float_step(sums, start, f"kk * {unroll} + {j}", j % chains)
        for j in range(whole - whole % unroll, -(-self.shape.region.k // in_step)):
            self._float_step(sums, start, str(j), 0, is_half=j == whole)
        for row, vector in self.places():
            self.w(f"{self.total(row, vector)} = {' + '.join(sums[row][vector])}")

    def _float_step(
        self, sums: list[list[list[str]]], start: str, step: str, chain: int, is_half: bool = False
    ) -> None:
        """One entry of the weights; of the last pair only the first column may be there."""
        for vector in range(self.vectors):
            self.fetch("data", start, step, vector)
            raw = self.words("data", start, step, vector)
            if self.shape.way == "pairs":
                self._pairs_step(sums, raw, step, vector, chain)
            else:
                columns = self._widened(raw, step)
                self._widened_step(sums, columns[:1] if is_half else columns, vector, chain)

    def _pairs_step(self, sums: list[list[list[str]]], raw: str, step: str, vector: int, chain: int) -> None:
        weights = self.w.register(raw, dtype="int32")
        for row in range(self.most):
            total = sums[row][vector][chain]
            self.w(f"{total} = {dot_pairs(total, weights, self.x(row, step, 'sw'))}")

    def _widened_step(
        self, sums: list[list[list[str]]], columns: list[tuple[str, str]], vector: int, chain: int
    ) -> None:
        for column, weights in columns:
            for row in range(self.most):
                total = sums[row][vector][chain]
                self.w(f"{total} = {total} + {weights} * {self.x(row, column, 'sf')}")

    def _widened(self, raw: str, step: str) -> list[tuple[str, str]]:
        """Columns of x and the float32 weights they meet, of one entry."""
        if self.layout.format == "f32":
            return [(step, self.w.register(raw))]
        if self.layout.format == "f16":
            return [(step, self.w.register(half(raw, self.shape.device)))]
        pair = self.w.register(raw, dtype="int32")
        low = f'T.reinterpret("float32x16", T.shift_left({pair}, {splat("16")}))'
        high = f'T.reinterpret("float32x16", T.bitwise_and({pair}, {splat("-65536")}))'
        columns = [(f"({step}) * 2", low), (f"({step}) * 2 + 1", high)]
        return [(column, self.w.register(value)) for column, value in columns]


class _Widened(Grouped):
    """Packed weights without byte or bfloat16 instructions: every code becomes a float32."""

    def emit(self) -> None:
        """The totals of the unit."""
        words = self.step // self.coding.codes_in_word
        self.clear()
        groups = f"for g in T.serial({self.shape.region.k // self.step}):"
        with self.w.block(groups), self.w.block(f"for v in T.unroll({self.vectors}):"):
            sums = [self.w.register(constant(0.0)) for _ in range(self.most)]
            with self.w.block(f"for kk in T.serial({words}):"):
                self._add_words(sums, f"g * {words} + kk")
            self._scale(sums)

    def _add_words(self, sums: list[str], entry: str) -> None:
        word = self.w.register(self.words("codes", self.starts["codes"], entry, "v"), dtype="int32")
        for i, quad in enumerate(self.quads(word, entry, "v")):
            for j in range(4):
                byte = f"T.bitwise_and(T.shift_right({quad}, {splat(str(8 * j))}), {splat('255')})"
                code = self.w.register(f'T.cast({byte}, "float32x16")')
                for row, total in enumerate(sums):
                    place = f"({entry}) * {self.coding.codes_in_word} + {4 * i + j}"
                    self.w(f"{total} = {total} + {code} * {self.x(row, place, 'sf')}")

    def _scale(self, sums: list[str]) -> None:
        scale = self.w.register(self.scale("scales", "super_scales", "v"))
        minimum, zero = self.minimum("v"), self.coding.zero
        for row, partial in enumerate(sums):
            of_x = self.part(row, "sums", "g", "sf")
            centred = f"({partial} - {of_x} * {constant(float(zero))})" if zero else partial
            total = self.total(row, "v")
            self.w(f"{total} = {total} + {centred} * {scale}" + (f" + {of_x} * {minimum}" if minimum else ""))
