"""The sums of a tile: blocks of rows of x times blocks of rows of weights, on matrix instructions.

Names in the kernel's text: `base` [rows, 1] where each row of x begins, `cn` [columns] the rows of the weights, `rk`
[depth] (floats), `rc` [chunks of a step] and `rt` [words of a chunk] (codes) as tl.arange; `sum{i}` of product i.
"""

from __future__ import annotations

from irx.backends.triton.templates.gemm_shape import Shape
from irx.backends.triton.templates.linear_codes import Codes, emit_codes, field
from irx.backends.triton.templates.linear_input import Statistics, emit_statistics, emit_vectors, emit_x, masked
from irx.backends.triton.templates.linear_shape import wide
from irx.backends.triton.writer import ELEMENTS, Writer


def emit_sums(w: Writer, shape: Shape) -> list[str]:
    """The sums of each product: names of [rows, columns] values."""
    p = shape.problem
    stats = emit_statistics(w, p, "base", shape.rows)
    for i in range(len(p.layouts)):
        w(f"sum{i} = tl.zeros(({shape.rows}, {shape.columns}), tl.float32)")
    first = w.let(f"share * {shape.share}", "first") if shape.split > 1 else "0"
    last = w.let(f"tl.minimum({first} + {shape.share}, {p.k})", "last") if shape.split > 1 else str(p.k)
    with w.block(f"for start in range({first}, {last}, {shape.depth}):"):
        (_packed_step if p.is_packed else _float_step)(w, shape, last, stats)
    return [f"sum{i}" for i in range(len(p.layouts))]


def _float_step(w: Writer, shape: Shape, last: str, stats: Statistics) -> None:
    p = shape.problem
    w("column = start + rk")
    inside = "" if shape.is_whole else w.let(f"column < {last}", "inside")
    x = _operand_x(w, shape, "column", inside, stats)
    place = w.let(f"(cn{wide(p.n, p.layout.depth)} * {p.layout.depth})[:, None] + column[None, :]", "place")
    mask = f"{inside}[None, :]" if inside else ""
    for i in range(len(p.layouts)):
        weight = w.let(f"tl.load(w{i}_data + {place}{masked(mask)}){_cast(p.layout.format, p.operand)}", "w")
        _multiply(w, shape, i, x, weight)


def _packed_step(w: Writer, shape: Shape, last: str, stats: Statistics) -> None:
    """Field by field: the elements of one field of all words are a block of their own."""
    p = shape.problem
    words, chunks = p.layout.words, shape.depth // p.chunk
    w(f"chunk = start // {p.chunk} + rc")
    inside = "" if shape.is_whole else w.let(f"chunk < {last} // {p.chunk}", "inside")
    mask = f"{inside}[None, :]" if inside else ""
    codes = []
    for i, layout in enumerate(p.layouts):
        arrays = {part: f"w{i}_{part}" for part in layout.parts}
        codes.append(_affine(w, emit_codes(w, layout, arrays, "cn", "chunk", mask)))
    for f in range(p.layout.fields):
        column = f"(chunk[:, None] * {p.chunk} + ({f * words} + rt[None, :]))"
        column = w.let(f"tl.reshape({column}, ({chunks * words},))", "column")
        within = w.let(f"{column} < {last}", "within") if inside else ""
        x = _operand_x(w, shape, column, within, stats)
        for i, (code, scale, offset) in enumerate(codes):
            value = f"{field(code, f)} * {scale} + {offset}"
            block = f"tl.reshape({value}, ({shape.columns}, {chunks * words}))"
            _multiply(w, shape, i, x, w.let(f"{block}.to({ELEMENTS[p.operand]})", "w"))


def _affine(w: Writer, codes: Codes) -> tuple[Codes, str, str]:
    """Factor and summand [columns, chunks, 1] that make values of the floats 1 + code / steps."""
    steps, zero = codes.steps, codes.coding.zero
    minimum = f" + {codes.minimum}" if codes.minimum else ""
    scale = w.let(f"({codes.scale} * {steps}.0)[:, :, None]", "scale")
    return codes, scale, w.let(f"({codes.scale} * -{steps + zero}.0{minimum})[:, :, None]", "offset")


def _operand_x(w: Writer, shape: Shape, column: str, inside: str, stats: Statistics) -> str:
    """A block of x [rows, len(column)] in the dtype of the product."""
    p = shape.problem
    mask = f"{inside}[None, :]" if inside else ""
    place = f"base + {column}[None, :]"
    if p.norm is None and not p.rounds_x:
        return w.let(f"tl.load({place}{masked(mask)}){_cast(p.x_dtype, p.operand)}", "x")
    vectors = emit_vectors(w, p, f"{column}[None, :]", mask)
    return w.let(f"{emit_x(w, p, place, mask, vectors, stats)}{_cast('f32', p.operand)}", "x")


def _cast(source: str, target: str) -> str:
    return "" if source == target else f".to({ELEMENTS[target]})"


def _multiply(w: Writer, shape: Shape, i: int, x: str, weight: str) -> None:
    w(f"sum{i} = tl.dot({x}, tl.trans({weight}), sum{i}{_precision(shape)})")


def _precision(shape: Shape) -> str:
    """How float32 is multiplied: as three products of its halves where that is what the device has units for."""
    if shape.problem.operand != "f32":
        return ""
    way = "tf32x3" if "tf32" in shape.problem.device.features else "ieee"
    return f', input_precision="{way}"'
