"""Reading weights out of tiles inside a kernel: halves as float32, and the columns of one row for table lookups."""

from __future__ import annotations

from collections.abc import Mapping

from irx.backends.layouts.coding import Coding
from irx.backends.tvm.layouts.tiles import Tiles
from irx.backends.tvm.writer import LANES, Writer, constant, splat, typed
from irx.target import Device


def half(value: str, device: Device, lanes: int = LANES) -> str:
    """The float16 whose bits are the uint16 `value`, as float32. Without conversion instructions: exact if finite."""
    if "f16c" in device.features or "avx512f" in device.features:
        return f'T.cast(T.reinterpret("{typed("float16", lanes)}", {value}), "{typed("float32", lanes)}")'
    wide, single = typed("uint32", lanes), typed("float32", lanes)
    bits = f'T.cast({value}, "{wide}")'
    moved = f"T.shift_left(T.bitwise_and({bits}, {_bits(0x7FFF, lanes)}), {_bits(13, lanes)})"
    sign = f"T.shift_left(T.bitwise_and({bits}, {_bits(0x8000, lanes)}), {_bits(16, lanes)})"
    magnitude = f'T.reinterpret("{single}", {moved}) * {constant(2.0**112, lanes)}'
    return f'T.reinterpret("{single}", T.bitwise_or(T.reinterpret("{wide}", {magnitude}), {sign}))'


def emit_row(
    w: Writer, layout: Tiles, buffers: Mapping[str, str], row: str, column: str, device: Device, lanes: int = LANES
) -> str:
    """A register with columns `column` to `column + lanes - 1` of one row of the weight, as f32.

    `buffers` are the names of flat buffers by part, `row` and `column` integer expressions. `lanes` is 16, with
    `column` a multiple of 16 and no column past the last one, or 1 for any column.
    """
    tile = w.let(f"({row}) // {layout.tile}", "t")
    lane = w.let(f"({row}) % {layout.tile}", "n")
    k = w.let(column, "k")
    reader = _Reader(w, layout, buffers, tile, lane, k, lanes, device)
    return w.register(reader.packed() if layout.coding else reader.floats(), lanes=lanes)


class _Reader:
    def __init__(
        self,
        w: Writer,
        layout: Tiles,
        buffers: Mapping[str, str],
        tile: str,
        lane: str,
        k: str,
        lanes: int,
        device: Device,
    ) -> None:
        self.w, self.layout, self.buffers, self.device = w, layout, buffers, device
        self.tile, self.lane, self.k, self.lanes = tile, lane, k, lanes

    def place(self, part: str, n: str) -> str:
        """The flat index of entry `n` of this row in a part."""
        count = self.layout.parts[part].shape[1]
        return f"({self.tile} * {count} + {n}) * {self.layout.tile} + {self.lane}"

    def entry(self, part: str, n: str) -> str:
        return f"{self.buffers[part]}[{self.place(part, n)}]"

    def floats(self) -> str:
        if self.layout.format == "bf16":
            return self.pairs()
        buffer, start = self.buffers["data"], self.place("data", self.k)
        index = f"T.ramp({start}, {self.layout.tile}, {self.lanes})" if self.lanes > 1 else start
        value = f"{buffer}[{index}]"
        return value if self.layout.format == "f32" else half(value, self.device, self.lanes)

    def pairs(self) -> str:
        """bf16: words of two columns, taken apart."""
        bits = self.w.local(self.lanes, "uint32")
        for i in range(self.lanes):
            column = f"({self.k} + {i})"
            word = f'T.reinterpret("uint32", {self.entry("data", f"{column} // 2")})'
            shift = f'T.cast({column} % 2, "uint32") * T.uint32(16)'
            self.w(f"{bits}[{i}] = T.shift_left(T.shift_right({word}, {shift}), T.uint32(16))")
        index = f"T.ramp(0, 1, {self.lanes})" if self.lanes > 1 else "0"
        return f'T.reinterpret("{typed("float32", self.lanes)}", {bits}[{index}])'

    def packed(self) -> str:
        coding = self.layout.coding
        assert coding is not None
        codes = self.w.register(self.codes(coding), dtype="int32", lanes=self.lanes)
        centred = f'T.cast({codes}, "{typed("float32", self.lanes)}") - {constant(float(coding.zero), self.lanes)}'
        value = f"({centred}) * {splat(self.scale(coding, 'scales', 'super_scales'), self.lanes)}"
        if not coding.has_minimum:
            return value
        sign = "-" if coding.super_group else "+"
        return f"{value} {sign} {splat(self.scale(coding, 'minima', 'super_minima'), self.lanes)}"

    def scale(self, coding: Coding, part: str, above: str) -> str:
        """The scale (or minimum) of the group that the columns are in."""
        entry = self.entry(part, f"{self.k} // {coding.group}")
        if not coding.super_group:
            return self.w.let(half(entry, self.device, 1), "s")
        shared = half(self.entry(above, f"{self.k} // {coding.super_group}"), self.device, 1)
        return self.w.let(f'{shared} * T.cast({entry}, "float32")', "s")

    def codes(self, coding: Coding) -> str:
        """The codes as int32 lanes: every lane picks its word and its bits of it."""
        count = coding.codes_in_word
        column = self.column()
        low = f"T.bitwise_and({column}, {_word(3, self.lanes)})"
        shift = f"{low} * {_word(8, self.lanes)}"
        if count == 8:
            shift = f"{shift} + T.bitwise_and({column}, {_word(4, self.lanes)})"
        words = self.chosen("codes", self.k, count)
        picked = f"T.shift_right({words}, {shift})"
        codes = f"T.bitwise_and({picked}, {_word(255 if count == 4 else 15, self.lanes)})"
        if not coding.high_bits:
            return codes
        return f"T.bitwise_or({codes}, T.shift_left({self.upper(coding, column, low)}, {_word(4, self.lanes)}))"

    def upper(self, coding: Coding, column: str, low: str) -> str:
        """The bits above the fourth, which lie in the second plane."""
        bits, count = coding.high_bits, coding.high_in_word
        inside = f"T.bitwise_and({column}, {_word(count - 1, self.lanes)})"
        quad = f"T.shift_right({inside}, {_word(2, self.lanes)})"
        shift = f"{low} * {_word(8, self.lanes)} + {quad} * {_word(bits, self.lanes)}"
        picked = f"T.shift_right({self.chosen('high', self.k, count)}, {shift})"
        return f"T.bitwise_and({picked}, {_word((1 << bits) - 1, self.lanes)})"

    def column(self) -> str:
        """The columns as int32 lanes."""
        start = f'T.cast({self.k}, "int32")'
        return f"T.ramp({start}, 1, {self.lanes})" if self.lanes > 1 else start

    def chosen(self, part: str, first: str, count: int) -> str:
        """The word of every lane."""
        words = [
            splat(self.w.let(self.entry(part, f"({first} + {at}) // {count}"), "c"), self.lanes)
            for at in range(0, self.lanes, count)
        ]
        chosen = words[-1]
        for i in reversed(range(len(words) - 1)):
            chosen = (
                f"T.Select(T.ramp(0, 1, {self.lanes}) < {_word((i + 1) * count, self.lanes)}, {words[i]}, {chosen})"
            )
        return chosen


def _word(number: int, lanes: int) -> str:
    return splat(f"T.int32({number})", lanes)


def _bits(number: int, lanes: int) -> str:
    return splat(f"T.uint32({number})", lanes)
