"""Products of few rows with a weight (decoding): each unit of 16 to 64 output columns is read once for all rows.

    for my units: for blocks of 1, 2, 4 or 8 rows: sums in registers -> epilogue -> outputs

Up to two rows are prepared (norm, rounding) by every thread for itself; more of them by a kernel before, in shares.
"""

from __future__ import annotations

from irx.backends.regions.linear_region import LinearRegion
from irx.backends.regions.lowered import Call, Choices, Temporary
from irx.backends.tvm.kernel import Kernel, Pointer, Size
from irx.backends.tvm.layouts.tiles import Tiles
from irx.backends.tvm.templates.choosing import emit_start
from irx.backends.tvm.templates.instructions import CROSSED, PAIRS, PREFETCH, SUM, needed_for_halves
from irx.backends.tvm.templates.linear_operands import (
    call,
    emit_columns,
    epilogue_parameters,
    input_parameters,
    operand_bindings,
    product_parameters,
)
from irx.backends.tvm.templates.matvec_input import emit_row_input, emit_views
from irx.backends.tvm.templates.matvec_product import emit_product
from irx.backends.tvm.templates.matvec_shape import Shape, balanced_vectors, can_halve, layouts_of
from irx.backends.tvm.templates.matvec_sums import REGISTERS, Unit, emit_first_fetch, place_of, totals_bytes
from irx.backends.tvm.writer import LANES, Writer
from irx.tuning import Choice

ROWS = (1, 2, 4, 8)
PREPARED_ALONE = 2
"""Most rows that every thread prepares for itself."""
PREFETCH_BYTES = 16384
"""How far ahead of their use weights are asked for, where much happens between two loads of them: processors do not
foresee streams that take turns, and see only as far as their queues of instructions. They come as far as the
second-level cache: the first has room for too few lines under way."""
UNROLL = 4
"""Entries of float weights in a loop's body."""
SCRATCH = "prepared"


def matvec_calls(region: LinearRegion, most: int, choices: Choices) -> tuple[Call, ...]:
    """The calls that compute a region of any number of rows, `most` of them at a time."""
    shape = shape_for(region, most, choices)
    bindings = operand_bindings(region, shape.layouts)
    if not shape.is_direct:
        size = region.rows * shape.row_places["end"]
        bindings["scratch"] = Temporary(SCRATCH, size, per_thread=most <= PREPARED_ALONE)
    if totals_bytes(shape):
        bindings["totals"] = Temporary("totals", totals_bytes(shape), per_thread=True)
    if shape.is_direct or most <= PREPARED_ALONE:
        return (call(matvec_kernel(shape, prepares=not shape.is_direct), bindings),)
    return call(prepare_kernel(shape), bindings), call(matvec_kernel(shape, prepares=False), bindings)


def shape_for(region: LinearRegion, most: int, choices: Choices) -> Shape:
    """The kernel's shape: knobs from the schedule, else what suits the format and the number of rows."""
    layouts = layouts_of(region, choices.device)
    layout = layouts[0]
    halves = can_halve(region, layouts, choices.device)
    widest = 4 if most * len(layouts) < 8 else 2
    if layout.coding is not None:
        widest = max(1, REGISTERS // (most if halves or region.activations == "a8" else 2 * most))
    defaults: dict[str, Choice] = {
        "vectors": balanced_vectors(region.n, layout.tile, choices.device.cores, widest=widest),
        "prefetch": 0 if most == 1 and _is_foreseen(layout) else PREFETCH_BYTES,
        **({"unroll": UNROLL} if layout.coding is None else {}),
        **({"halves": 1} if halves else {}),
    }
    bucket = f"{layout.format}/{region.activations} {region.n}x{region.k} rows{most}"
    knobs = choices.schedule("matvec", bucket, defaults)
    vectors, prefetch = int(knobs["vectors"]), int(knobs["prefetch"])
    unroll, in_halves = int(knobs.get("unroll", UNROLL)), bool(knobs.get("halves", False))
    vectors = min(vectors, layout.tile // LANES)
    return Shape(region, layouts, choices.device, vectors, unroll, most, prefetch, in_halves)


def _is_foreseen(layout: Tiles) -> bool:
    """True where one row's loads follow each other closely enough for the processor: of floats and of whole bytes."""
    return layout.coding is None or layout.coding.bits == 8


def prepare_kernel(shape: Shape) -> Kernel:
    """Prepares the rows of x, shared out over the threads."""
    w = Writer()
    emit_views(w)
    with w.block("for row in T.serial((rows * tid) // nt, (rows * (tid + 1)) // nt):"):
        base = w.let(f"row * {shape.row_places['end']}")
        emit_row_input(w, shape, "row", base)
    parameters = (Size("rows"), *input_parameters(shape.region), Pointer("scratch", "uint8"))
    llvm = SUM + (CROSSED if shape.way == "halves" else "")
    return Kernel("matvec_input", parameters, w.text(), llvm, note=f"rows of x for {_title(shape)}")


def matvec_kernel(shape: Shape, prepares: bool) -> Kernel:
    """The products and the epilogue; with `prepares` each thread prepares all rows for itself first."""
    w = Writer()
    row_bytes = shape.row_places["end"]
    if not shape.is_direct:
        emit_views(w)
    elif shape.way == "pairs":
        w(f'xw = T.decl_buffer(({1 << 40},), "int32", data=x.data)')
    emit_first_fetch(w, shape)
    emit_start(w, shape.region.best)
    origin = w.let(f"tid * rows * {row_bytes}" if prepares else "T.int64(0)", "origin")
    if prepares:
        with w.block("for row in T.serial(rows):"):
            emit_row_input(w, shape, "row", w.let(f"{origin} + row * {row_bytes}"))
    blocks = f"for block in T.serial((rows + {shape.most - 1}) // {shape.most}):"
    units = f"for unit in T.serial(({shape.units} * tid) // nt, ({shape.units} * (tid + 1)) // nt):"
    with w.block(units), w.block(blocks):
        _unit(w, shape, origin)
    inputs = input_parameters(shape.region) if prepares or shape.is_direct else ()
    scratch = () if shape.is_direct else (Pointer("scratch", "uint8"),)
    totals = (Pointer("totals", "float32"),) if totals_bytes(shape) else ()
    products = product_parameters(shape.region, shape.layouts)
    parameters = (Size("rows"), *inputs, *scratch, *totals, *products, *epilogue_parameters(shape.region))
    return Kernel("matvec", parameters, w.text(), _llvm(shape), note=_title(shape))


def _llvm(shape: Shape) -> str:
    """What the products import."""
    imported = SUM + (PREFETCH if shape.prefetch else "")
    if shape.way in ("pairs", "halves"):
        imported += PAIRS
    if shape.way == "halves":
        codings = {layout.coding for layout in shape.layouts if layout.coding is not None}
        imported += CROSSED + "".join(needed_for_halves(coding) for coding in sorted(codings, key=str))
    return imported


def _title(shape: Shape) -> str:
    r = shape.region
    products = " and ".join(layout.format for layout in shape.layouts)
    norm = f"{r.norm.op}, " if r.norm else ""
    return f"{norm}linear {r.n}x{r.k} of {products} weights, {shape.most} rows at a time, x as {shape.way}"


def _unit(w: Writer, shape: Shape, origin: str) -> None:
    """One unit of one block of rows."""
    tile, offset = place_of(w, shape, "unit")
    rows = tuple(_row_start(w, shape, origin, m) for m in range(shape.most))
    totals = [emit_product(w, shape, Unit(i, tile, offset, rows)) for i in range(len(shape.layouts))]
    first = f"block * {shape.most}"
    count = "1" if shape.most == 1 else f"T.min(T.int64({shape.most}), rows - {first})"
    with w.block(f"for m in T.serial({count}):"):
        row = w.let(f"{first} + m", "row")
        with w.block(f"for v in T.serial({shape.vectors}):"):
            place = w.let(f"(m * {shape.vectors} + v) * {LANES}", "place")
            column = w.let(f"unit * {shape.columns} + v * {LANES}", "column")
            emit_columns(w, shape.region, [(total, place) for total in totals], row, column, shape.columns)


def _row_start(w: Writer, shape: Shape, origin: str, m: int) -> str:
    """Where row `m` of the block begins; rows beyond the last one are computed as the last, and not stored."""
    row = "block" if shape.most == 1 else f"T.min(block * {shape.most} + {m}, rows - 1)"
    if not shape.is_direct:
        return w.let(f"({origin} + {row} * {shape.row_places['end']}) // 4", "row")
    return w.let(f"{row} * {shape.region.k // (2 if shape.way == 'pairs' else 1)}", "row")
