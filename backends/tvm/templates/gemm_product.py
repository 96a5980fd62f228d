"""The innermost loops: a block of rows times a unit of columns, summed in registers, left in the thread's `totals`."""

from __future__ import annotations

from dataclasses import dataclass

from irx.backends.tvm.amx import statement
from irx.backends.tvm.templates.gemm_instructions import dot
from irx.backends.tvm.templates.gemm_shape import Shape
from irx.backends.tvm.templates.instructions import prefetch
from irx.backends.tvm.writer import LANES, Writer, at, constant, splat


def emit_product(w: Writer, shape: Shape, product: int, tile: str, offset: str, first: str, ahead: str = "") -> None:
    """The sums of rows `first` and following. `ahead` is the index of weights to ask for meanwhile, word by word."""
    block = _Block(w, shape, product, tile, offset, first, ahead)
    base = f"(tid * {len(shape.layouts)} + {product}) * {shape.block * shape.columns}"
    if shape.uses_matrices:
        block.matrices(base)
        return
    sums = block.grouped() if shape.group else block.plain()
    for m in range(shape.block):
        for v in range(shape.vectors):
            w(f"{at('totals', f'{base} + {(m * shape.vectors + v) * LANES}')} = {sums[m][v]}")


def kept(w: Writer, value: str) -> str:
    """An integer in a register of its own: TIR would put a let in all its uses, and reason about each at length."""
    return w.register(value, dtype="int64", lanes=1)


@dataclass(frozen=True)
class _Weights:
    """Where words of weights are: word d of vector v at `start + d * stride + 16 v` of a buffer."""

    buffer: str
    dtype: str
    start: str
    stride: int


class _Block:
    def __init__(self, w: Writer, shape: Shape, product: int, tile: str, offset: str, first: str, ahead: str) -> None:
        self.w, self.shape, self.product, self.first, self.ahead = w, shape, product, first, ahead
        self.weights = self._weights(tile, offset)
        self.x = kept(w, f"{first} * {shape.stride}")

    def _weights(self, tile: str, offset: str) -> _Weights:
        shape, w, i = self.shape, self.w, self.product
        dtype = "float32" if shape.way == "floats" else "int32"
        if shape.is_prepared(i):
            return _Weights(f"t{i}", dtype, kept(w, f"tid * {shape.tile_words}"), shape.columns)
        layout = shape.layouts[i]
        depth = layout.parts["data"].shape[1]
        return _Weights(f"w{i}_data", dtype, kept(w, f"{tile} * {depth * layout.tile} + {offset}"), layout.tile)

    def _registers(self, value: str, dtype: str) -> list[str]:
        return [self.w.register(value, dtype=dtype) for _ in range(self.shape.vectors)]

    def plain(self) -> list[list[str]]:
        """Without groups: one sum over all words."""
        sums = [self._registers(constant(0.0), "float32") for _ in range(self.shape.block)]
        for of_x, of_weights in self._parts():
            self._words(sums, "0", self.shape.words, of_x * self.shape.words, of_weights * self.shape.words)
        return sums

    def _parts(self) -> tuple[tuple[int, int], ...]:
        """Which parts of x meet which of the weights; the product of both rests is below what is kept."""
        of_x = [(part, 0) for part in range(self.shape.x_parts)]
        return (*of_x, *((0, part) for part in range(1, self.shape.weight_parts)))

    def matrices(self, base: str) -> None:
        """All words by AMX, sums stored in `totals` from `base` on."""
        shape, weights = self.shape, self.weights
        self.w(statement("zero"))
        for of_x, of_weights in self._parts():
            x = f"T.address_of(words[{self.x} + {of_x * shape.words}])"
            first = f"T.address_of({weights.buffer}[{weights.start} + {of_weights * shape.words * weights.stride}])"
            steps = (shape.stride * 4, weights.stride * 4, shape.words // LANES)
            row, depth, count = (f"T.int64({number})" for number in steps)
            self.w(statement("multiply", x, row, first, depth, count))
        self.w(statement("store", f"T.address_of(totals[{base}])", f"T.int64({shape.columns * 4})"))

    def _words(self, sums: list[list[str]], first: str, count: int, x_shift: int = 0, shift: int = 0) -> None:
        """Add the products of `count` words from word `first` on; shifts say how far behind it x and weights lie."""
        unroll = self.shape.unroll
        if count // unroll > 1:
            with self.w.block(f"for step in T.serial({count // unroll}):"):
                self._fetch(f"({first}) // {unroll} + step")
                for j in range(unroll):
                    self._word(sums, f"{first} + step * {unroll} + {j}", x_shift, shift)
        else:
            unroll = count + 1
        for j in range(count - count % unroll, count):
            self._word(sums, f"{first} + {j}", x_shift, shift)

    def _fetch(self, step: str) -> None:
        """Ask for a word of columns of the next unit's weights."""
        if not self.ahead:
            return
        for v in range(self.shape.vectors):
            layout = self.shape.layouts[self.product]
            place = f"{self.ahead} + ({step}) * {layout.tile} + {v * LANES}"
            self.w(prefetch(f"w{self.product}_{layout.main}", place))

    def _word(self, sums: list[list[str]], word: str, x_shift: int, shift: int) -> None:
        start = f"{self.weights.start} + ({word} + {shift}) * {self.weights.stride}"
        weights = [
            self.w.register(
                at(self.weights.buffer, f"{start} + {v * LANES}"),
                dtype=self.weights.dtype,
            )
            for v in range(self.shape.vectors)
        ]
        for m, row in enumerate(sums):
            x = splat(f"words[{self.x} + {m * self.shape.stride + x_shift} + {word}]")
            for total, weight in zip(row, weights, strict=True):
                self.w(f"{total} = {dot(self.shape.way, total, weight, x)}")

    def grouped(self) -> list[list[str]]:
        """Sums of codes in groups, each times its scales."""
        shape, w = self.shape, self.w
        words = shape.words * shape.group // shape.region.k
        sums = [self._registers(constant(0.0), "float32") for _ in range(shape.block)]
        with w.block(f"for g in T.serial({shape.region.k // shape.group}):"):
            is_float = shape.way == "halves"
            codes = [self._registers(self._origin(m), "float32" if is_float else "int32") for m in range(shape.block)]
            self._words(codes, f"g * {words}", words)
            scales, minima = self._scales("s"), self._scales("m") if self._has_minimum else []
            for m, row in enumerate(codes):
                self._scaled(m, row, sums[m], scales, minima)
        return sums

    @property
    def _has_minimum(self) -> bool:
        coding = self.shape.layouts[self.product].coding
        return coding is not None and coding.has_minimum

    def _origin(self, m: int) -> str:
        """What a sum of codes starts from: with codes that are not centred, their zero times the codes of x."""
        if self.shape.way == "halves":
            return constant(0.0)
        coding = self.shape.layouts[self.product].coding
        assert coding is not None
        if self.shape.way == "words" or not coding.zero:
            return splat("T.int32(0)")
        groups = self.shape.region.k // self.shape.group
        return splat(f"codes[({self.first} + {m}) * {groups} + g] * T.int32({-coding.zero})")

    def _scales(self, name: str) -> list[str]:
        shape = self.shape
        coding = shape.layouts[self.product].coding
        assert coding is not None
        group = "g" if coding.group == shape.group else f"g // {coding.group // shape.group}"
        base = f"tid * {shape.groups(self.product) * shape.columns} + {group} * {shape.columns}"
        places = [f"{base} + {v * LANES}" for v in range(shape.vectors)]
        return [self.w.register(at(f"{name}{self.product}", place)) for place in places]

    def _scaled(self, m: int, codes: list[str], sums: list[str], scales: list[str], minima: list[str]) -> None:
        shape = self.shape
        row, groups = f"({self.first} + {m})", shape.region.k // shape.group
        x_scale = ""
        if shape.has_scales:
            ratio = shape.x_group // shape.group
            group = "g" if ratio == 1 else f"g // {ratio}"
            x_scale = splat(f"scales[{row} * {shape.region.k // shape.x_group} + {group}]")
        for v, total in enumerate(sums):
            value = codes[v] if shape.way == "halves" else f'T.cast({codes[v]}, "float32x16")'
            factor = f"({scales[v]} * {x_scale})" if x_scale else scales[v]
            self.w(f"{total} = {total} + {value} * {factor}")
            if minima:
                self.w(f"{total} = {total} + {minima[v]} * {splat(f'sums[{row} * {groups} + g]')}")
