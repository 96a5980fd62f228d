"""Products of many rows with a weight (prefill, encoders, batches): tiles of the result on matrix instructions.

[rows of x, normalized and rounded]       (a kernel of its own, unless the rows are few)
for my tiles: sums of blocks -> [the sums of programs that share a tile] -> epilogue on the tile -> outputs
"""

from __future__ import annotations

from dataclasses import replace

from irx.backends.regions.lowered import Binding, Call, Choices, Temporary
from irx.backends.triton.kernel import Kernel, Pointer
from irx.backends.triton.templates.gemm_product import emit_sums
from irx.backends.triton.templates.gemm_shape import KNOBS, Shape, defaults, normalizes_itself
from irx.backends.triton.templates.linear_codes import emit_one
from irx.backends.triton.templates.linear_input import emit_statistics, emit_vectors, emit_x
from irx.backends.triton.templates.linear_operands import (
    Place,
    Share,
    call,
    emit_operands,
    emit_results,
    input_parameters,
    parameters,
    shared_memory,
    shared_sums,
)
from irx.backends.triton.templates.linear_shape import Problem, power_of_two
from irx.backends.triton.writer import Writer
from irx.ir.types import item_bytes

ROWS = (16,)
"""Rows up to which there are kernels of their own."""
PREPARED_BLOCK = 1024


def gemm_calls(problem: Problem, most: int | None, choices: Choices) -> tuple[Call, ...]:
    """The calls that compute a region of up to `most` rows, None for any number."""
    problem = replace(problem, prepared=_is_prepared(problem, most))
    bucket = f"{problem.bucket} rows{most or ''}"
    chosen = choices.schedule("gemm", bucket, defaults(problem, most))
    shape = Shape(problem, **{name: int(chosen[name]) for name in KNOBS})
    tiles = (problem.region.rows + (shape.rows - 1)) // shape.rows * shape.across
    sums = tiles * (shape.rows * shape.columns * len(problem.layouts))
    memory = shared_memory(sums, shape.split, tiles) if shape.split > 1 else {}
    if not problem.prepared:
        return (call(gemm_kernel(shape), problem, memory),)
    size = problem.region.rows * int(problem.k * item_bytes(problem.operand))
    prepared: dict[str, Binding] = {"prepared": Temporary("prepared", size)}
    first = call(prepare_kernel(replace(problem, prepared=False)), problem, prepared)
    return first, call(gemm_kernel(shape), problem, {**memory, "x": prepared["prepared"]})


def _is_prepared(problem: Problem, most: int | None) -> bool:
    changes = problem.region.norm is not None or problem.rounds_x
    return changes and not normalizes_itself(problem, most)


def prepare_kernel(problem: Problem) -> Kernel:
    """Writes rows of x as the product wants them."""
    w = Writer()
    block = min(PREPARED_BLOCK, power_of_two(max(problem.k, 16)))
    w("row = tl.program_id(0).to(tl.int64)")
    w(f"base = x + row * {problem.k}")
    stats = emit_statistics(w, problem, "base", 0)
    with w.block(f"for start in range(0, {problem.k}, {block}):"):
        w(f"column = start + tl.arange(0, {block})")
        mask = f"column < {problem.k}" if problem.k % block else ""
        vectors = emit_vectors(w, problem, "column", mask)
        value = emit_x(w, problem, "base + column", mask, vectors, stats)
        w.store("prepared", f"row * {problem.k} + column", problem.operand, value, mask)
    pointers = (*input_parameters(problem), Pointer("prepared", problem.operand))
    return Kernel("prepare", pointers, w.text(), ("rows",), note=f"rows of x for {problem.title}")


def gemm_kernel(shape: Shape) -> Kernel:
    """The products and the epilogue."""
    w = Writer()
    p = shape.problem
    if shape.split > 1:
        w("share = tl.program_id(1)")
    if p.is_packed:
        w(f"rc = tl.arange(0, {shape.depth // p.chunk})")
        w(f"rt = tl.arange(0, {p.layout.words})")
        emit_one(w, "rows")
    else:
        w(f"rk = tl.arange(0, {shape.depth})")
    if shape.persistent:
        tiles = f"(rows + {shape.rows - 1}) // {shape.rows} * {shape.across}"
        with w.block(f"for tile in range(tl.program_id(0), {tiles}, tl.num_programs(0)):"):
            _tile(w, shape)
    else:
        w("tile = tl.program_id(0)")
        _tile(w, shape)
    note = f"{p.title}; {shape}"
    pointers = parameters(p, shape.split > 1)
    return Kernel("gemm", pointers, w.text(), shape.grid, warps=shape.warps, stages=shape.stages, note=note)


def _tile(w: Writer, shape: Shape) -> None:
    """One tile: its place, sums and results."""
    n, stripe = shape.problem.n, shape.stripe * shape.across
    w(f"top = tile // {stripe} * {shape.stripe}")
    w(f"height = tl.minimum((rows + {shape.rows - 1}) // {shape.rows} - top, {shape.stripe})")
    w(f"rm = (top + tile % {stripe} % height) * {shape.rows} + tl.arange(0, {shape.rows})")
    w(f"rn = tile % {stripe} // height * {shape.columns} + tl.arange(0, {shape.columns})")
    w("row = tl.minimum(rm, rows - 1).to(tl.int64)[:, None]  # rows behind the last are read as it, and not stored")
    w(f"cn = {f'tl.minimum(rn, {n - 1})' if n % shape.columns else 'rn'}")
    w(f"base = x + row * {shape.problem.k}")
    columns = f"(rn < {n})[None, :]" if n % shape.columns else ""
    exists = w.let(" & ".join(["(rm < rows)[:, None]", *([columns] if columns else [])]), "exists")
    place = Place("row", "rn[None, :]", columns, exists)
    sums = emit_sums(w, shape)
    if shape.split == 1:
        emit_results(w, shape.problem, place, sums, emit_operands(w, shape.problem, place))
        return
    size = shape.rows * shape.columns
    inner = f"tl.arange(0, {shape.rows})[:, None] * {shape.columns} + tl.arange(0, {shape.columns})[None, :]"
    index = w.let(f"tile * {size} + {inner}", "index")
    whole = f"((rows + {shape.rows - 1}) // {shape.rows} * {shape.across * size})"
    share = Share(shape.split, "tile", index, whole, f"({shape.rows}, {shape.columns})", "")
    with shared_sums(w, sums, share) as totals:
        emit_results(w, shape.problem, place, totals, emit_operands(w, shape.problem, place))
