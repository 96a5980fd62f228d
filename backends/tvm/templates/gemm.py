"""Products of many rows with a weight (prefill, encoders), in register tiles of rows and columns.

    rows of x as the product wants them            (a kernel of its own, unless x is that already)
    for my register tiles, column by column: [convert the tile of weights] -> sums in registers -> epilogue -> outputs

A thread's register tiles are neighbours: it meets all rows of a stripe with a tile of weights, which then is in its
cache, before it goes on to the next. The last block of rows overlaps the one before, so that every block is whole: what
both compute is equal. With AMX a block of fewer rows, which is the only one then, has matrices of fewer rows.
"""

from __future__ import annotations

from irx.backends.regions.linear_region import LinearRegion
from irx.backends.regions.lowered import Binding, Call, Choices, Data, Temporary
from irx.backends.tvm.amx import functions, statement
from irx.backends.tvm.kernel import Kernel, Parameter, Pointer, Size
from irx.backends.tvm.layouts.tiles import Tiles
from irx.backends.tvm.templates.choosing import emit_start
from irx.backends.tvm.templates.gemm_instructions import NEEDED
from irx.backends.tvm.templates.gemm_product import emit_product, kept
from irx.backends.tvm.templates.gemm_rows import emit_rows
from irx.backends.tvm.templates.gemm_shape import Shape, shape_for
from irx.backends.tvm.templates.gemm_tiles import emit_tile
from irx.backends.tvm.templates.instructions import PREFETCH, needed_for_halves
from irx.backends.tvm.templates.linear_operands import (
    call,
    emit_columns,
    epilogue_parameters,
    input_parameters,
    operand_bindings,
    product_parameters,
)
from irx.backends.tvm.templates.linear_shape import MOST_BITS
from irx.backends.tvm.writer import LANES, Writer


def gemm_calls(
    region: LinearRegion, layouts: tuple[Tiles, ...], choices: Choices, fewest: int = 17
) -> tuple[Call, ...]:
    """The calls that compute a region of `fewest` rows or more."""
    shape = shape_for(region, layouts, choices, fewest)
    bindings = {**operand_bindings(region, layouts), **_memory(shape)}
    product = call(gemm_kernel(shape), bindings)
    return (product,) if shape.is_direct else (call(rows_kernel(shape), bindings), product)


def rows_kernel(shape: Shape) -> Kernel:
    """Writes the rows of x as the product wants them."""
    w = Writer()
    emit_rows(w, shape)
    parameters = (Size("rows"), *input_parameters(shape.region), *_row_parameters(shape))
    return Kernel("gemm_rows", parameters, w.text(), note=f"rows of x for {_title(shape)}")


def gemm_kernel(shape: Shape) -> Kernel:
    """The products and the epilogue."""
    w = Writer()
    emit_start(w, shape.region.best)
    blocks = w.let(f"(rows + {shape.block - 1}) // {shape.block}", "blocks")
    start = w.let(f"({shape.units} * {blocks} * tid) // nt", "start")
    if shape.uses_matrices:
        w(statement("configure", f"T.min(T.int64({LANES}), rows - {LANES})"))
    with w.block(f"for u in T.serial({start}, ({shape.units} * {blocks} * (tid + 1)) // nt):"):
        _register_tile(w, shape, blocks, start)
    if shape.uses_matrices:
        w(statement("release"))
    own = [Pointer(name, dtype) for name, (dtype, _) in _own_memory(shape).items()]
    region = shape.region
    products = product_parameters(region, shape.layouts)
    parameters = (Size("rows"), *_row_parameters(shape), *products, *own, *epilogue_parameters(region))
    return Kernel("gemm", parameters, w.text(), _llvm(shape), note=_title(shape))


def _llvm(shape: Shape) -> str:
    """What the kernel imports."""
    small = {coding for coding in shape.codings if shape.way == "halves" and coding.bits <= MOST_BITS}
    tables = "".join(needed_for_halves(coding) for coding in sorted(small, key=str))
    return (
        (PREFETCH if shape.prefetches else "")
        + NEEDED[shape.way]
        + tables
        + (functions(shape.vectors) if shape.uses_matrices else "")
    )


def _title(shape: Shape) -> str:
    r = shape.region
    products = " and ".join(layout.format for layout in shape.layouts)
    norm = f"{r.norm.op}, " if r.norm else ""
    tile = f"{shape.block}x{shape.columns}"
    return f"{norm}linear {r.n}x{r.k} of {products} weights, register tiles of {tile}, x as {shape.way}"


def _register_tile(w: Writer, shape: Shape, blocks: str, start: str) -> None:
    """One block of rows and one unit of columns: sums, epilogue, outputs."""
    in_stripe = shape.units * shape.stripe
    stripe = kept(w, f"u // {in_stripe} * {shape.stripe}")
    inside = kept(w, f"u % {in_stripe}")
    mine = kept(w, f"T.min(T.int64({shape.stripe}), {blocks} - {stripe})")
    unit = kept(w, f"{inside} // {mine}")
    last = f"T.max(rows - {shape.block}, T.int64(0))" if shape.uses_matrices else f"rows - {shape.block}"
    first = kept(w, f"T.min(({stripe} + {inside} % {mine}) * {shape.block}, {last})")
    in_tile = shape.layouts[0].tile // shape.columns
    tile, offset = kept(w, f"{unit} // {in_tile}"), kept(w, f"{unit} % {in_tile} * {shape.columns}")
    for i in range(len(shape.layouts)):
        if shape.is_prepared(i):
            with w.block(f"if T.min({inside} % {mine}, u - {start}) == 0:"):
                emit_tile(w, shape, i, tile, offset)
    for i in range(len(shape.layouts)):
        emit_product(w, shape, i, tile, offset, first, _ahead(w, shape, i, unit, f"({inside} % {mine})", mine))
    size = shape.block * shape.columns
    count = f"T.min(T.int64({shape.block}), rows)" if shape.uses_matrices else f"{shape.block}"
    with w.block(f"for m in T.serial({count}):"), w.block(f"for v in T.serial({shape.vectors}):"):
        places = [f"(tid * {len(shape.layouts)} + {i}) * {size}" for i in range(len(shape.layouts))]
        totals = [("totals", f"{place} + (m * {shape.vectors} + v) * {LANES}") for place in places]
        row, column = w.let(f"{first} + m", "row"), w.let(f"{unit} * {shape.columns} + v * {LANES}", "column")
        emit_columns(w, shape.region, totals, row, column, shape.columns)


def _ahead(w: Writer, shape: Shape, product: int, unit: str, block: str, blocks: str) -> str:
    """Where a block's part of the next unit's weights begins: each of the blocks asks for a part."""
    if not shape.prefetches:
        return ""
    layout = shape.layouts[product]
    depth, in_tile = layout.parts[layout.main].shape[1], layout.tile // shape.columns
    tile, offset = f"({unit} + 1) // {in_tile}", f"({unit} + 1) % {in_tile} * {shape.columns}"
    return kept(w, f"({tile} * {depth} + {block} * {depth} // {blocks}) * {layout.tile} + {offset}")


def _row_parameters(shape: Shape) -> tuple[Parameter, ...]:
    """The rows of x as the product wants them."""
    parts = {"words": "float32" if shape.way == "floats" else "int32"}
    if shape.has_scales:
        parts["scales"] = "float32"
    if shape.has_sums:
        parts["sums"] = "float32"
    if shape.has_code_sums:
        parts["codes"] = "int32"
    return tuple(Pointer(name, dtype) for name, dtype in parts.items())


def _own_memory(shape: Shape) -> dict[str, tuple[str, int]]:
    """Buffers that every thread has of its own: dtype and elements."""
    parts = {"totals": ("float32", len(shape.layouts) * shape.block * shape.columns)}
    for i, layout in enumerate(shape.layouts):
        if not shape.is_prepared(i):
            continue
        parts[f"t{i}"] = ("float32" if shape.way == "floats" else "int32", shape.tile_words)
        if shape.group and layout.coding is not None:
            parts[f"s{i}"] = ("float32", shape.groups(i) * shape.columns)
            if layout.coding.has_minimum:
                parts[f"m{i}"] = ("float32", shape.groups(i) * shape.columns)
    return parts


def _memory(shape: Shape) -> dict[str, Binding]:
    """What the buffers of the calls stand for."""
    r = shape.region
    bindings: dict[str, Binding] = {
        name: Temporary(f"gemm_{name}", 4 * elements, per_thread=True)
        for name, (_, elements) in _own_memory(shape).items()
    }
    if shape.is_direct:
        return {**bindings, "words": Data(r.x)}
    sizes = {"words": shape.stride}
    if shape.has_scales:
        sizes["scales"] = r.k // shape.x_group
    if shape.group:
        sizes |= {"sums": r.k // shape.group, "codes": r.k // shape.group}
    return bindings | {name: Temporary(f"gemm_{name}", r.rows * (4 * size)) for name, size in sizes.items()}
