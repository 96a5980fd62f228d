"""The sums of one unit of work: a few rows of prepared x times 16, 32 or 64 output columns, kept in registers.

Every function leaves float32 totals in a buffer of the thread: row m, vector v at `(m * vectors + v) * 16`.
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.backends.layouts.coding import Coding
from irx.backends.tvm.layouts.reading import half
from irx.backends.tvm.layouts.tiles import Tiles
from irx.backends.tvm.templates.instructions import dot_bytes, dot_pairs, prefetch
from irx.backends.tvm.templates.matvec_shape import Shape
from irx.backends.tvm.writer import LANES, STACK, Writer, at, constant, splat

REGISTERS = 16
"""Vector registers that the innermost loop may use for sums; the rest hold weights and scales."""
CHAINS = 8
"""Sums that must be under way at once, or each multiplication waits for the one before it."""
WORDS = 8
"""Words of codes that are unrolled."""


@dataclass(frozen=True)
class Unit:
    """Where a unit's inputs are: names of integer variables.

    `tile` is the index of the tile, `offset` that of the first column in it, `rows` the starts of the rows of x in
    scratch (bytes), or in x itself (elements) where it is read directly.
    """

    product: int
    tile: str
    offset: str
    rows: tuple[str, ...]


def emit_product(w: Writer, shape: Shape, unit: Unit) -> str:
    """The totals of a unit: the name of their buffer."""
    product = _Product(w, shape, unit)
    if shape.way == "planes":
        product.planes()
    elif product.layout.coding is not None:
        product.widened_codes(product.layout.coding)
    else:
        product.floats()
    return product.totals


def totals_bytes(shape: Shape) -> int:
    """Bytes of a thread's totals where they are too many for the stack, else 0."""
    size = 4 * shape.most * shape.vectors * LANES
    return size * len(shape.layouts) if size >= STACK else 0


class _Product:
    def __init__(self, w: Writer, shape: Shape, unit: Unit) -> None:
        self.w, self.shape, self.unit = w, shape, unit
        self.layout: Tiles = shape.layouts[unit.product]
        self.vectors, self.most = shape.vectors, shape.most
        self.totals = self._room()

    def _room(self) -> str:
        """The thread's own totals of this product: on the stack where they are few, else a part of `totals`."""
        size = self.most * self.vectors * LANES
        if not totals_bytes(self.shape):
            return self.w.local(size)
        name = self.w.fresh("b")
        place = f"(tid * {len(self.shape.layouts)} + {self.unit.product}) * {size}"
        self.w(f'{name} = T.decl_buffer(({size},), "float32", data=totals.data, elem_offset={place})')
        return name

    def buffer(self, part: str) -> str:
        return f"w{self.unit.product}_{part}"

    def start(self, part: str) -> str:
        """The index of the unit's first element in a part."""
        count = self.layout.parts[part].shape[1]
        return self.w.let(f"{self.unit.tile} * {count * self.layout.tile} + {self.unit.offset}", "p")

    def words(self, part: str, start: str, entry: str, vector: str | int) -> str:
        """16 elements of entry `entry` of a part."""
        return at(self.buffer(part), f"{start} + ({entry}) * {self.layout.tile} + {vector} * {LANES}")

    def fetch(self, part: str, start: str, entry: str, vector: str | int) -> None:
        """Ask for the line that lies `prefetch` bytes behind an entry of 4-byte elements."""
        if self.shape.prefetch:
            ahead = self.shape.prefetch // 4
            index = f"{start} + ({entry}) * {self.layout.tile} + {vector} * {LANES} + {ahead}"
            self.w(prefetch(self.buffer(part), index))

    def total(self, row: str | int, vector: str | int) -> str:
        return at(self.totals, f"({row} * {self.vectors} + {vector}) * {LANES}")

    def x(self, row: int, place: str, view: str) -> str:
        """One element of x in all lanes: element `place` of a prepared row under a view of scratch, or of x itself."""
        if self.shape.is_direct:
            return splat(f"{'x' if view == 'sf' else 'xw'}[{self.unit.rows[row]} + {place}]")
        return splat(f"{view}[{self.unit.rows[row]} + {place}]")

    def floats(self) -> None:
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

    def places(self) -> list[tuple[int, int]]:
        return [(row, vector) for row in range(self.most) for vector in range(self.vectors)]

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

    def scale(self, part: str, above: str, starts: dict[str, str], step: int, g: str, vector: str | int) -> str:
        """Scales (or minima) of 16 columns for step `g` of `step` elements."""
        coding = self.layout.coding
        assert coding is not None
        entry = f"{g} // {coding.group // step}" if coding.group > step else g
        raw = self.words(part, starts[part], entry, vector)
        if not coding.super_group:
            return half(raw, self.shape.device)
        shared = half(
            self.words(above, starts[above], f"{g} // {coding.super_group // step}", vector), self.shape.device
        )
        return f'{shared} * T.cast({raw}, "float32x16")'

    def starts(self) -> dict[str, str]:
        return {part: self.start(part) for part in self.layout.parts}

    def nibbles(self, coding: Coding, word: str, starts: dict[str, str], entry: str, vector: str | int) -> list[str]:
        """The codes of a word as registers of unsigned bytes: k to k+3, and with 4 bits and more k+4 to k+7."""
        w = self.w
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
        high = w.register(self.words("high", starts["high"], f"({entry}) // {count}", vector), dtype="int32")
        mask = splat(str(0x01010101 * ((1 << coding.high_bits) - 1)))
        for i, quad in enumerate(quads):
            shift = splat(f'T.cast((({entry}) % {count} * 2 + {i}) * {coding.high_bits}, "int32")')
            upper = f"T.bitwise_and(T.shift_right({high}, {shift}), {mask})"
            w(f"{quad} = T.bitwise_or({quad}, T.shift_left({upper}, {splat('4')}))")
        return quads

    def planes(self) -> None:
        """Packed weights times planes of bytes: integer sums for each group, then scales."""
        coding = self.layout.coding
        assert coding is not None
        together = max(1, min(self.vectors, REGISTERS // (2 * self.most * self.shape.planes)))
        starts, step = self.starts(), self.shape.sum_group
        with self.w.block(f"for i in T.unroll({self.most * self.vectors}):"):
            self.w(f"{at(self.totals, f'i * {LANES}')} = {constant(0.0)}")
        with self.w.block(f"for g in T.serial({self.shape.region.k // step}):"):
            if together == self.vectors:
                self._plane_group(coding, starts, step, together, 0)
            else:
                # Two parts share x in registers; of more the sums would not fit, which only a loop keeps apart.
                loop = "unroll" if self.vectors == 2 * together else "serial"
                with self.w.block(f"for part in T.{loop}({self.vectors // together}):"):
                    self._plane_group(coding, starts, step, together, f"part * {together}")

    def _plane_group(self, coding: Coding, starts: dict[str, str], step: int, together: int, first: str | int) -> None:
        w, planes = self.w, self.shape.planes
        sums = [
            [[self._first_sum(coding, row, p) for p in range(planes)] for _ in range(together)]
            for row in range(self.most)
        ]
        words = step // coding.codes_in_word
        if words <= WORDS:
            with w.block(f"for kk in T.unroll({words}):"):
                self._plane_words(coding, starts, sums, f"g * {words} + kk", first)
        else:
            with w.block(f"for kk_outer in T.serial({words // WORDS}):"), w.block(f"for kk in T.unroll({WORDS}):"):
                self._plane_words(coding, starts, sums, f"g * {words} + kk_outer * {WORDS} + kk", first)
        for v in range(together):
            self._scale_sums(coding, starts, step, [row[v] for row in sums], f"({first} + {v})")

    def _first_sum(self, coding: Coding, row: int, plane: int) -> str:
        """What an integer sum starts from: the lowest plane with the codes' zero already taken off."""
        lowest = plane == self.shape.planes - 1
        offset = self.part(row, "sums", "g", "sw") if coding.zero and lowest else splat("T.int32(0)")
        return self.w.register(offset, dtype="int32")

    def part(self, row: int, name: str, entry: str, view: str) -> str:
        """An entry of the scales or sums of a prepared row, in all lanes."""
        return self.x(row, f"{self.shape.row_places[name] // 4} + {entry}", view)

    def _plane_words(
        self, coding: Coding, starts: dict[str, str], sums: list[list[list[str]]], entry: str, first: str | int
    ) -> None:
        quads_in_word = coding.codes_in_word // 4
        for v in range(len(sums[0])):
            vector = f"({first} + {v})"
            self.fetch("codes", starts["codes"], entry, vector)
            word = self.w.register(self.words("codes", starts["codes"], entry, vector), dtype="int32")
            for i, quad in enumerate(self.nibbles(coding, word, starts, entry, vector)):
                for row in range(self.most):
                    for plane, total in enumerate(sums[row][v]):
                        place = f"{plane * self.shape.region.k // 4} + ({entry}) * {quads_in_word} + {i}"
                        self.w(f"{total} = {dot_bytes(total, quad, self.x(row, place, 'sw'))}")

    def _scale_sums(
        self, coding: Coding, starts: dict[str, str], step: int, sums: list[list[str]], vector: str
    ) -> None:
        scale = self.w.register(self.scale("scales", "super_scales", starts, step, "g", vector))
        minimum = self._minimum(coding, starts, step, vector)
        ratio = self.shape.x_group // step
        for row, planes in enumerate(sums):
            whole = f"T.shift_left({planes[0]}, {splat('8')}) + {planes[1]}" if len(planes) == 2 else planes[0]
            x_scale = self.part(row, "scales", f"g // {ratio}" if ratio > 1 else "g", "sf")
            total = self.total(row, vector)
            self.w(f'{total} = {total} + T.cast({whole}, "float32x16") * {x_scale} * {scale}')
            if minimum:
                self.w(f"{total} = {total} + {self.part(row, 'sums', 'g', 'sf')} * {minimum}")

    def _minimum(self, coding: Coding, starts: dict[str, str], step: int, vector: str | int) -> str:
        """A register of what is added for every unit of x, empty where there is nothing."""
        if not coding.has_minimum:
            return ""
        minimum = self.scale("minima", "super_minima", starts, step, "g", vector)
        return self.w.register(f"{constant(0.0)} - {minimum}" if coding.super_group else minimum)

    def widened_codes(self, coding: Coding) -> None:
        """Packed weights without byte instructions: every code becomes a float32."""
        starts, step = self.starts(), self.shape.sum_group
        words = step // coding.codes_in_word
        with self.w.block(f"for i in T.unroll({self.most * self.vectors}):"):
            self.w(f"{at(self.totals, f'i * {LANES}')} = {constant(0.0)}")
        groups = f"for g in T.serial({self.shape.region.k // step}):"
        with self.w.block(groups), self.w.block(f"for v in T.unroll({self.vectors}):"):
            sums = [self.w.register(constant(0.0)) for _ in range(self.most)]
            with self.w.block(f"for kk in T.serial({words}):"):
                self._float_words(coding, starts, sums, f"g * {words} + kk")
            self._scale_floats(coding, starts, step, sums)

    def _float_words(self, coding: Coding, starts: dict[str, str], sums: list[str], entry: str) -> None:
        word = self.w.register(self.words("codes", starts["codes"], entry, "v"), dtype="int32")
        for i, quad in enumerate(self.nibbles(coding, word, starts, entry, "v")):
            for j in range(4):
                byte = f"T.bitwise_and(T.shift_right({quad}, {splat(str(8 * j))}), {splat('255')})"
                code = self.w.register(f'T.cast({byte}, "float32x16")')
                for row, total in enumerate(sums):
                    place = f"({entry}) * {coding.codes_in_word} + {4 * i + j}"
                    self.w(f"{total} = {total} + {code} * {self.x(row, place, 'sf')}")

    def _scale_floats(self, coding: Coding, starts: dict[str, str], step: int, sums: list[str]) -> None:
        scale = self.w.register(self.scale("scales", "super_scales", starts, step, "g", "v"))
        minimum = self._minimum(coding, starts, step, "v")
        for row, partial in enumerate(sums):
            of_x = self.part(row, "sums", "g", "sf")
            centred = f"({partial} - {of_x} * {constant(float(coding.zero))})" if coding.zero else partial
            total = self.total(row, "v")
            self.w(f"{total} = {total} + {centred} * {scale}" + (f" + {of_x} * {minimum}" if minimum else ""))
