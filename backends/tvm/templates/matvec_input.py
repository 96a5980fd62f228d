"""Preparing rows of x: norm, rounding, and the form in which the products want them.

A prepared row lies in scratch memory, its parts at `Shape.row_places`: `x` as float32, as bfloat16, or as planes of
bytes; `scales` of the groups of planes (float32); `sums` of groups, for codes whose zero is not 0 or that have a
minimum (int32 `-zero * sum of codes` with planes of zero-based codes, else the float32 sum of the values).
"""

from __future__ import annotations

from irx.backends.regions.linear_region import LinearRegion
from irx.backends.tvm.templates.instructions import crossed, largest_of, reduced, summed
from irx.backends.tvm.templates.matvec_shape import Shape
from irx.backends.tvm.writer import LANES, Writer, at, bf16_bits, constant, splat, typed
from irx.ops.precision import SMALLEST

SIXTEEN_BITS = 127 * 256 + 127
"""The largest code that two planes hold: 256 * high + low, both signed bytes."""


def emit_views(w: Writer) -> None:
    """The scratch buffer under the types that its parts have."""
    for name, dtype in (("sf", "float32"), ("sw", "int32"), ("sh", "uint16"), ("sb", "int8")):
        w(f'{name} = T.decl_buffer(({1 << 40},), "{dtype}", data=scratch.data)')


def emit_row_input(w: Writer, shape: Shape, row: str, base: str) -> None:
    """Prepare row `row` of x in scratch, from byte `base` on."""
    values = RowValues(w, shape.region, row, shape.region.activations == "bf16" and shape.way != "pairs")
    if shape.way == "pairs":
        _pairs(w, shape, values, base)
    elif shape.way == "planes":
        _planes(w, shape, values, base)
    elif shape.way == "halves":
        _halves(w, shape, values, base)
    else:
        _floats(w, shape, values, base)


class RowValues:
    """Elements of one row behind the norm, as float32 lanes; `is_rounded` where the region rounds x to bfloat16."""

    def __init__(self, w: Writer, region: LinearRegion, row: str, is_rounded: bool) -> None:
        self.w, self.region, self.is_rounded = w, region, is_rounded
        self.start = w.let(f"({row}) * {self.region.k}")
        self.mean = self.factor = ""
        if self.region.norm is not None:
            self._statistics(self.region.norm.eps, centred=self.region.norm.op == "layer_norm")

    def raw(self, k: str, lanes: int) -> str:
        """`lanes` elements of x as they are."""
        return self.w.load("x", f"{self.start} + {k}", self.region.x.dtype, lanes)

    def at(self, k: str, lanes: int) -> str:
        """`lanes` elements from column `k`, normed and, where the region says so, rounded to bfloat16."""
        value = self.raw(k, lanes)
        norm = self.region.norm
        if norm is not None:
            centred = f"({value} - {splat(self.mean, lanes)})" if self.mean else value
            self.w(f"{value} = {centred} * {splat(self.factor, lanes)}")
            if norm.weight is not None:
                weight = self.w.load("norm_weight", k, norm.weight.dtype, lanes)
                self.w(f"{value} = {value} * {weight}")
            if norm.bias is not None:
                self.w(f"{value} = {value} + {self.w.load('norm_bias', k, norm.bias.dtype, lanes)}")
        if self.is_rounded:
            bits = f"T.shift_left({bf16_bits(self.w, value, lanes)}, {splat('T.uint32(16)', lanes)})"
            self.w(f'{value} = T.reinterpret("{typed("float32", lanes)}", {bits})')
        return value

    def _statistics(self, eps: float, centred: bool) -> None:
        if centred:
            self.mean = self.w.let(f"{self._sum(False)} * T.float32({1 / self.region.k!r})", "mean")
        mean_square = f"{self._sum(True)} * T.float32({1 / self.region.k!r})"
        self.factor = self.w.let(f"T.float32(1) / T.sqrt({mean_square} + T.float32({eps!r}))", "factor")

    def _sum(self, squared: bool) -> str:
        """The sum of the row, or of the squares of its distances from the mean."""
        w, k, wide = self.w, self.region.k, 4 * LANES
        sums = [w.register(constant(0.0)) for _ in range(4)]
        with w.block(f"for i in T.serial({k // wide}):"):
            for j, total in enumerate(sums):
                w(f"{total} = {total} + {self._term(f'i * {wide} + {j * LANES}', LANES, squared)}")
        with w.block(f"for i in T.serial({k % wide // LANES}):"):
            w(f"{sums[0]} = {sums[0]} + {self._term(f'{k - k % wide} + i * {LANES}', LANES, squared)}")
        w(f"{sums[0]} = ({sums[0]} + {sums[1]}) + ({sums[2]} + {sums[3]})")
        total = w.register(reduced(sums[0], "fadd"), lanes=1)
        with w.block(f"for i in T.serial({k % LANES}):"):
            w(f"{total} = {total} + {self._term(f'{k - k % LANES} + i', 1, squared)}")
        return total

    def _term(self, k: str, lanes: int, squared: bool) -> str:
        value = self.raw(k, lanes)
        if not squared:
            return value
        if self.mean:
            self.w(f"{value} = {value} - {splat(self.mean, lanes)}")
        return f"{value} * {value}"


def _pairs(w: Writer, shape: Shape, values: RowValues, base: str) -> None:
    k, depth = shape.region.k, shape.layout.depth
    start = w.let(f"({base}) // 2")
    for lanes, first, count in _pieces(k):
        with w.block(f"for i in T.serial({count}):"):
            column = f"{first} + i * {lanes}"
            w.store("sh", f"{start} + {column}", "bf16", values.at(column, lanes), lanes)
    with w.block(f"for i in T.serial({depth - k}):"):
        w(f"sh[{start} + {k} + i] = T.uint16(0)")


def _pieces(k: int) -> tuple[tuple[int, int, int], ...]:
    """Lanes, first column and count of the vectors of a row, then of the single elements left over."""
    pieces = ((LANES, 0, k // LANES), (1, k - k % LANES, k % LANES))
    return tuple(piece for piece in pieces if piece[2])


def _floats(w: Writer, shape: Shape, values: RowValues, base: str) -> None:
    places, k = shape.row_places, shape.region.k
    start = w.let(f"({base} + {places['x']}) // 4")
    for lanes, first, count in _pieces(k):
        with w.block(f"for i in T.serial({count}):"):
            column = f"{first} + i * {lanes}"
            w.store("sf", f"{start} + {column}", "f32", values.at(column, lanes), lanes)
    if shape.region.activations == "a8":
        _round_in_place(w, shape, start)
    if shape.sum_group:
        group, sums = shape.sum_group, w.let(f"({base} + {places['sums']}) // 4")
        with w.block(f"for g in T.serial({k // group}):"):
            total = w.register(constant(0.0))
            with w.block(f"for i in T.serial({group // LANES}):"):
                w(f"{total} = {total} + {at('sf', f'{start} + g * {group} + i * {LANES}')}")
            w(f"sf[{sums} + g] = {summed(total)}")


def _halves(w: Writer, shape: Shape, values: RowValues, base: str) -> None:
    """bfloat16 numbers, crossed as the words of codes come apart, and their sums where there are minima."""
    places, group = shape.row_places, shape.sum_group
    start = w.let(f"({base}) // 2")
    sums = w.let(f"({base} + {places['sums']}) // 4") if shape.has_float_sums else ""
    with w.block(f"for g in T.serial({shape.region.k // group}):"):
        total = w.register(constant(0.0)) if sums else ""
        with w.block(f"for i in T.serial({group // LANES}):"):
            column = f"g * {group} + i * {LANES}"
            value = values.at(column, LANES)
            if sums:
                w(f"{total} = {total} + {value}")
            w.store("sh", f"{start} + {column}", "bf16", crossed(value))
        if sums:
            w(f"sf[{sums} + g] = {summed(total)}")


def _round_in_place(w: Writer, shape: Shape, start: str) -> None:
    """The region's 8-bit rounding of float32 values, for products that take floats."""
    group = shape.region.group
    lanes = LANES if group % LANES == 0 else 1
    with w.block(f"for g in T.serial({shape.region.k // group}):"):
        largest = w.register(constant(0.0, lanes), lanes=lanes)
        place = f"{start} + g * {group} + i * {lanes}"
        with w.block(f"for i in T.serial({group // lanes}):"):
            w(f"{largest} = T.max({largest}, {magnitude(at('sf', place, lanes), lanes)})")
        scale, inverse = scale_of(w, largest_of(largest) if lanes > 1 else largest, 127)
        with w.block(f"for i in T.serial({group // lanes}):"):
            codes = rounded(f"{at('sf', place, lanes)} * {splat(inverse, lanes)}", lanes)
            w(f"{at('sf', place, lanes)} = {codes} * {splat(scale, lanes)}")


def _planes(w: Writer, shape: Shape, values: RowValues, base: str) -> None:
    places, k, group = shape.row_places, shape.region.k, shape.x_group
    start = w.let(f"{base} + {places['x']}")
    scales = w.let(f"({base} + {places['scales']}) // 4")
    sums = w.let(f"({base} + {places['sums']}) // 4")
    step, codes = shape.sum_group, 127 if shape.planes == 1 else SIXTEEN_BITS
    with w.block(f"for g in T.serial({k // group}):"):
        pieces = [values.at(f"g * {group} + {i}", LANES) for i in range(0, group, LANES)]
        largest = w.register(magnitude(pieces[0], LANES))
        for piece in pieces[1:]:
            w(f"{largest} = T.max({largest}, {magnitude(piece, LANES)})")
        scale, inverse = scale_of(w, largest_of(largest), codes)
        w(f"sf[{scales} + g] = {scale}")
        for first in range(0, group, step):
            total = w.register(splat("T.int32(0)"), dtype="int32")
            for i in range(first, first + step, LANES):
                code = f'T.cast({rounded(f"{pieces[i // LANES]} * {splat(inverse)}", LANES)}, "int32x16")'
                q = w.register(code, dtype="int32")
                w(f"{total} = {total} + {q}")
                _store_planes(w, shape, q, f"{start} + g * {group} + {i}")
            place = f"{sums} + g * {group // step} + {first // step}"
            _store_sum(w, shape, reduced(total, "add", "int32"), scale, place)


def _store_planes(w: Writer, shape: Shape, q: str, place: str) -> None:
    if shape.planes == 1:
        w(f'{at("sb", place)} = T.cast({q}, "int8x16")')
        return
    high = w.register(f"T.shift_right({q} + {splat('128')}, {splat('8')})", dtype="int32")
    w(f'{at("sb", place)} = T.cast({high}, "int8x16")')
    w(f'{at("sb", f"{place} + {shape.region.k}")} = T.cast({q} - T.shift_left({high}, {splat("8")}), "int8x16")')


def _store_sum(w: Writer, shape: Shape, total: str, scale: str, place: str) -> None:
    zeros = {layout.coding.zero for layout in shape.layouts if layout.coding is not None}
    zero = zeros.pop()
    if zero:
        w(f"sw[{place}] = {total} * T.int32({-zero})")
    else:
        w(f'sf[{place}] = T.cast({total}, "float32") * {scale}')


def scale_of(w: Writer, largest: str, codes: int) -> tuple[str, str]:
    """The scale of a group whose largest magnitude this is, and its inverse; both 0 for a group of zeros."""
    largest = w.let(largest)
    is_zero = f"{largest} < T.float32({SMALLEST!r})"
    scale = w.let(f"T.Select({is_zero}, T.float32(0), {largest} / T.float32({codes}))")
    return scale, w.let(f"T.Select({is_zero}, T.float32(0), T.float32({codes}) / {largest})")


def magnitude(value: str, lanes: int) -> str:
    """|value|."""
    return f'T.call_llvm_pure_intrin("{typed("float32", lanes)}", "llvm.fabs", {value})'


def rounded(value: str, lanes: int) -> str:
    """To the nearest integer, ties to even."""
    return f'T.call_llvm_pure_intrin("{typed("float32", lanes)}", "llvm.rint", {value})'
