"""The rows of x as a matrix-matrix kernel wants them: a kernel of its own, before the product, in shares of rows.

Behind the norm and the rounding of the region x is written as words of 32 bits, with scales and sums where it is codes:

    words     [rows][stride]           float32, bfloat16 pairs, 16-bit code pairs or 8-bit code quads
    scales    float32 [rows][k/x_group]
    sums      float32 [rows][k/group]  sums of the values
    codes     int32   [rows][k/group]  sums of the codes
"""

from __future__ import annotations

from irx.backends.tvm.templates.gemm_shape import WORD, Shape
from irx.backends.tvm.templates.instructions import largest_of, reduced
from irx.backends.tvm.templates.matvec_input import RowValues, magnitude, rounded, scale_of
from irx.backends.tvm.writer import LANES, Writer, at, bf16_bits, constant, splat, typed

LARGEST_CODE = {"words": 32767, "bytes": 127}
_VIEW = {"floats": ("xf", "float32"), "pairs": ("xh", "uint16"), "halves": ("xh", "uint16")}
_VIEW |= {"words": ("xs", "int16"), "bytes": ("xb", "int8"), "split": ("xh", "uint16")}


def emit_rows(w: Writer, shape: Shape) -> None:
    """The body of the kernel; buffers `words`, `scales`, `sums` and `codes` as far as the shape has them."""
    view, dtype = _VIEW[shape.way]
    w(f'{view} = T.decl_buffer(({1 << 40},), "{dtype}", data=words.data)')
    with w.block("for row in T.serial((rows * tid) // nt, (rows * (tid + 1)) // nt):"):
        is_rounded = shape.region.activations == "bf16" and shape.way in ("floats", "halves")  # stores round the rest
        values = RowValues(w, shape.region, "row", is_rounded)
        start = w.let(f"row * {shape.stride * WORD[shape.way]}", "start")
        if shape.has_scales or (shape.way == "floats" and shape.region.activations == "a8"):
            _coded(w, shape, values, start)
        elif shape.has_sums:
            _summed(w, shape, values, start)
        else:
            _plain(w, shape, values, start)


def _plain(w: Writer, shape: Shape, values: RowValues, start: str) -> None:
    """Values as float32 or bfloat16, zeros behind the last one; where they are split, the rest behind the row."""
    view, dtype = _VIEW[shape.way][0], "f32" if shape.way == "floats" else "bf16"
    k, depth = shape.region.k, shape.words * WORD[shape.way]
    for lanes, first, count in ((LANES, 0, k // LANES), (1, k - k % LANES, k % LANES)):
        if count:
            with w.block(f"for i in T.serial({count}):"):
                column = f"{first} + i * {lanes}"
                value = values.at(column, lanes)
                w.store(view, f"{start} + {column}", dtype, value, lanes)
                if shape.x_parts > 1:
                    _store_rest(w, f"{start} + {depth} + {column}", value, lanes)
    if depth > k:
        with w.block(f"for i in T.serial({depth - k}):"):
            for part in range(shape.x_parts):
                w(f"{view}[{start} + {part * depth + k} + i] = T.uint16(0)")


def _store_rest(w: Writer, place: str, value: str, lanes: int) -> None:
    """What bfloat16 does not hold of a value, as bfloat16."""
    top = f"T.shift_left({bf16_bits(w, value, lanes)}, {splat('T.uint32(16)', lanes)})"
    rest = f'{value} - T.reinterpret("{typed("float32", lanes)}", {top})'
    w.store("xh", place, "bf16", rest, lanes)


def _summed(w: Writer, shape: Shape, values: RowValues, start: str) -> None:
    """Groups of values as bfloat16, and their sums."""
    groups = shape.region.k // shape.group
    with w.block(f"for g in T.serial({groups}):"):
        total = w.register(constant(0.0))
        with w.block(f"for i in T.serial({shape.group // LANES}):"):
            value = values.at(f"g * {shape.group} + i * {LANES}", LANES)
            w(f"{total} = {total} + {value}")
            w.store("xh", f"{start} + g * {shape.group} + i * {LANES}", "bf16", value)
        w(f"sums[row * {groups} + g] = {reduced(total, 'fadd')}")


def _coded(w: Writer, shape: Shape, values: RowValues, start: str) -> None:
    """Groups of values as codes; as codes times scales where the products take floats."""
    lanes = LANES if shape.x_group % LANES == 0 else 1
    groups = shape.region.k // shape.x_group
    with w.block(f"for g in T.serial({groups}):"):
        first = w.let(f"g * {shape.x_group}", "first")
        largest = w.register(constant(0.0, lanes), lanes=lanes)
        with w.block(f"for i in T.serial({shape.x_group // lanes}):"):
            value = values.at(f"{first} + i * {lanes}", lanes)
            w(f"{largest} = T.max({largest}, {magnitude(value, lanes)})")
        most = largest_of(largest) if lanes > 1 else largest
        scale, inverse = scale_of(w, most, LARGEST_CODE.get(shape.way, 127))
        if shape.has_scales:
            w(f"scales[row * {groups} + g] = {scale}")
        step = shape.group or shape.x_group
        with w.block(f"for part in T.serial({shape.x_group // step}):"):
            total = w.register(splat("T.int32(0)"), dtype="int32") if shape.has_scales else ""
            with w.block(f"for i in T.serial({step // lanes}):"):
                column = w.let(f"{first} + part * {step} + i * {lanes}", "column")
                code = w.let(rounded(f"{values.at(column, lanes)} * {splat(inverse, lanes)}", lanes))
                _store_code(w, shape, f"{start} + {column}", code, scale, total, lanes)
            _store_sums(w, shape, total, scale, f"g * {shape.x_group // step} + part")


def _store_code(w: Writer, shape: Shape, place: str, code: str, scale: str, total: str, lanes: int) -> None:
    view, dtype = _VIEW[shape.way]
    if not shape.has_scales:
        w(f"{at(view, place, lanes)} = {code} * {splat(scale, lanes)}")
        return
    number = w.let(f'T.cast({code}, "int32x16")')
    w(f"{total} = {total} + {number}")
    w(f'{at(view, place)} = T.cast({number}, "{dtype}x16")')


def _store_sums(w: Writer, shape: Shape, total: str, scale: str, group: str) -> None:
    if not (shape.has_code_sums or (shape.has_sums and shape.has_scales)):
        return
    whole = w.let(reduced(total, "add", "int32"))
    place = f"row * {shape.region.k // shape.group} + {group}"
    if shape.has_code_sums:
        w(f"codes[{place}] = {whole}")
    if shape.has_sums:
        w(f'sums[{place}] = T.cast({whole}, "float32") * {scale}')
