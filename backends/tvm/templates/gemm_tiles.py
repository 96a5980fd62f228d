"""A tile of weights as the innermost loop wants it, converted once by each thread for all rows that it meets.

The converted tile of product i lies in the thread's own memory: words `t{i}` [depth][columns]; for codes that keep
their scales also `s{i}` and, where the format has them, minima `m{i}`, float32 [k/group][columns].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from irx.backends.layouts.coding import Coding
from irx.backends.tvm.layouts.reading import half
from irx.backends.tvm.templates.gemm_instructions import code_pairs, halves
from irx.backends.tvm.templates.gemm_shape import Shape
from irx.backends.tvm.templates.instructions import code_halves
from irx.backends.tvm.templates.linear_shape import MOST_BITS
from irx.backends.tvm.writer import LANES, Writer, at, bf16_bits, constant, splat

LOW_HALVES = 0x0F0F0F0F
SIXTEEN = splat("T.uint32(16)")


def emit_tile(w: Writer, shape: Shape, product: int, tile: str, offset: str) -> None:
    """Convert the tile's columns from `offset` on: as many as the unit has."""
    maker = _Tile(w, shape, product, tile, offset)
    coding = maker.layout.coding
    if shape.way == "split":
        maker.padding()
    if coding is None:
        maker.floats()
        return
    if shape.group:
        maker.scales(coding)
    maker.codes(coding)


class _Tile:
    def __init__(self, w: Writer, shape: Shape, product: int, tile: str, offset: str) -> None:
        self.w, self.shape, self.product = w, shape, product
        self.layout = shape.layouts[product]
        self.tile, self.offset = tile, offset
        self.base = w.let(f"tid * {shape.tile_words}", "base")

    def source(self, part: str, entry: str) -> str:
        """16 elements of entry `entry` of a part, of vector `v`."""
        count = self.layout.parts[part].shape[1]
        place = f"({self.tile} * {count} + {entry}) * {self.layout.tile} + {self.offset} + v * {LANES}"
        return at(f"w{self.product}_{part}", place)

    def put(self, word: str, value: str) -> None:
        """Store 16 words of depth `word`."""
        place = f"{self.base} + ({word}) * {self.shape.columns} + v * {LANES}"
        self.w(f"{at(f't{self.product}', place)} = {value}")

    def put_values(self, column: str, values: Sequence[str]) -> None:
        """Store 16 float32 weights of each of these columns, the first one even: as they are, or split into pairs."""
        if self.shape.way != "split":
            for j, value in enumerate(values):
                self.put(f"{column} + {j}", value)
            return
        for j in range(0, len(values), 2):
            parts = [self.split(value) for value in values[j : j + 2]]
            for part, shift in ((0, 0), (1, self.shape.words)):
                bits = [split[part] for split in parts]
                word = f"T.bitwise_or({bits[0]}, T.shift_left({bits[1]}, {SIXTEEN}))" if bits[1:] else bits[0]
                self.put(f"({column}) // 2 + {j // 2 + shift}", f'T.reinterpret("int32x16", {word})')

    def split(self, value: str) -> tuple[str, str]:
        """The bits of the two bfloat16 numbers whose sum is nearly a value."""
        kept = self.w.register(value)
        top = self.w.register(bf16_bits(self.w, kept), dtype="uint32")
        rest = f'{kept} - T.reinterpret("float32x16", T.shift_left({top}, {SIXTEEN}))'
        return top, self.w.register(bf16_bits(self.w, rest), dtype="uint32")

    def padding(self) -> None:
        """Zeros where the words of a split tile go beyond the last column."""
        first, words = -(-self.shape.region.k // 2), self.shape.words
        if words == first:
            return
        vectors = self.shape.vectors
        with self.w.block(f"for d in T.serial({words - first}):"), self.w.block(f"for v in T.serial({vectors}):"):
            for part in range(2):
                self.put(f"{first + part * words} + d", splat("T.int32(0)"))

    def floats(self) -> None:
        """Float weights, widened."""
        w, k = self.w, self.shape.region.k
        pairs, vectors = k // 2, self.shape.vectors
        with w.block(f"for kk in T.serial({pairs}):"), w.block(f"for v in T.serial({vectors}):"):
            self.put_values("kk * 2", self.columns("kk", 2))
        if k % 2:
            with w.block(f"for v in T.serial({vectors}):"):
                self.put_values(str(k - 1), self.columns(str(pairs), 1))

    def columns(self, pair: str, count: int) -> list[str]:
        """The first `count` columns of a pair of columns, as float32."""
        if self.layout.format != "bf16":
            raw = [self.source("data", f"{pair} * 2 + {j}") for j in range(count)]
            return raw if self.layout.format == "f32" else [half(value, self.shape.device) for value in raw]
        word = self.w.register(self.source("data", pair), dtype="int32")
        even = f"T.shift_left({word}, {splat('16')})"
        bits = [even, f"T.bitwise_and({word}, {splat('-65536')})"]
        return [f'T.reinterpret("float32x16", {value})' for value in bits[:count]]

    def scales(self, coding: Coding) -> None:
        """Scales and minima of all groups as float32."""
        groups, columns = self.shape.groups(self.product), self.shape.columns
        names = [("s", "scales", 1), ("m", "minima", -1 if coding.super_group else 1)]
        with self.w.block(f"for g in T.serial({groups}):"), self.w.block(f"for v in T.serial({self.shape.vectors}):"):
            for name, part, sign in names[: 2 if coding.has_minimum else 1]:
                value = self.scale(coding, part, "g")
                place = f"tid * {groups * columns} + g * {columns} + v * {LANES}"
                self.w(f"{at(f'{name}{self.product}', place)} = {value if sign > 0 else f'{constant(0.0)} - {value}'}")

    def scale(self, coding: Coding, part: str, group: str) -> str:
        """The scales (or the stored minima) of one group."""
        raw = self.source(part, group)
        if not coding.super_group:
            return half(raw, self.shape.device)
        shared = self.source(f"super_{part}", f"({group}) // {coding.super_group // coding.group}")
        return f'{half(shared, self.shape.device)} * T.cast({raw}, "float32x16")'

    def codes(self, coding: Coding) -> None:
        """All codes; as values where the product takes floats."""
        step = coding.high_in_word if coding.high_bits else coding.codes_in_word
        steps, vectors = self.shape.region.k // step, self.shape.vectors
        with self.w.block(f"for c in T.serial({steps}):"), self.w.block(f"for v in T.serial({vectors}):"):
            values = self._values(coding, step) if not self.shape.group else None
            for i, quad in enumerate(self.quads(coding, step)):
                if values is None:
                    self._put_codes(coding, f"c * {step // 4} + {i}", quad)
                else:
                    self._put_values(coding, f"c * {step} + {4 * i}", quad, values)

    def _values(self, coding: Coding, step: int) -> tuple[str, str]:
        """The scale of a step's codes, and what their products with it are added to."""
        group = f"c * {step} // {coding.group}"
        scale = self.w.register(self.scale(coding, "scales", group))
        if not coding.has_minimum:
            return scale, ""
        minimum = self.scale(coding, "minima", group)
        return scale, self.w.register(f"{constant(0.0)} - {minimum}" if coding.super_group else minimum)

    def quads(self, coding: Coding, step: int) -> Iterator[str]:
        """Registers of unsigned bytes: codes k to k+3 of 16 columns each, for a step of columns."""
        w = self.w
        high = w.register(self.source("high", "c"), dtype="int32") if coding.high_bits else ""
        for i in range(step // coding.codes_in_word):
            entry = f"c * {step // coding.codes_in_word} + {i}"
            word = w.register(self.source("codes", entry), dtype="int32")
            if coding.bits == 8:
                yield word
                continue
            for j, shift in enumerate((0, 4)):
                moved = f"T.shift_right({word}, {splat(str(shift))})" if shift else word
                quad = w.register(f"T.bitwise_and({moved}, {splat(str(LOW_HALVES))})", dtype="int32")
                if high:
                    self._add_high(coding, quad, high, 2 * i + j)
                yield quad

    def _add_high(self, coding: Coding, quad: str, high: str, index: int) -> None:
        mask = 0x01010101 * ((1 << coding.high_bits) - 1)
        upper = f"T.bitwise_and(T.shift_right({high}, {splat(str(index * coding.high_bits))}), {splat(str(mask))})"
        self.w(f"{quad} = T.bitwise_or({quad}, T.shift_left({upper}, {splat('4')}))")

    def _put_codes(self, coding: Coding, index: str, quad: str) -> None:
        """A quad in the words of the way: as it is, or as two pairs."""
        if self.shape.way == "bytes":
            self.put(index, quad)
            return
        for j, which in enumerate(("even", "odd")):
            self.put(f"({index}) * 2 + {j}", self._pair(coding, quad, which))

    def _pair(self, coding: Coding, quad: str, which: str) -> str:
        """The pairs of a quad as 16-bit or bfloat16 numbers: the latter looked up where codes are small enough."""
        if self.shape.way == "halves" and coding.bits <= MOST_BITS:
            return code_halves(coding, code_pairs(quad, 0, which))
        pair = code_pairs(quad, coding.zero, which)
        return halves(pair) if self.shape.way == "halves" else pair

    def _put_values(self, coding: Coding, column: str, quad: str, values: tuple[str, str]) -> None:
        scale, minimum = values
        columns = []
        for j in range(4):
            byte = f"T.bitwise_and(T.shift_right({quad}, {splat(str(8 * j))}), {splat('255')})"
            value = f'(T.cast({byte}, "float32x16") - {constant(float(coding.zero))}) * {scale}'
            columns.append(f"{value} + {minimum}" if minimum else value)
        self.put_values(column, columns)
