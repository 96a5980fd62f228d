"""Products of few rows with a weight (decoding): every weight is read once, for all rows.

for my columns: [norm of x] -> chunk sums in registers -> [the sums of programs that share them] -> epilogue
"""

from __future__ import annotations

from irx.backends.regions.lowered import Call, Choices
from irx.backends.triton.kernel import Kernel
from irx.backends.triton.templates.linear_codes import emit_one
from irx.backends.triton.templates.linear_operands import (
    Place,
    Share,
    call,
    emit_operands,
    emit_results,
    parameters,
    shared_memory,
    shared_sums,
)
from irx.backends.triton.templates.linear_shape import Problem
from irx.backends.triton.templates.matvec_product import emit_sums
from irx.backends.triton.templates.matvec_shape import KNOBS, Shape, defaults
from irx.backends.triton.writer import Writer

ROWS = (1, 2, 4)
"""Rows that one kernel is made for; more of them are a matrix product."""


def matvec_calls(problem: Problem, most: int, choices: Choices) -> tuple[Call, ...]:
    """The call that computes a region of up to `most` rows."""
    chosen = choices.schedule("matvec", f"{problem.bucket} rows{most}", defaults(problem, most))
    shape = Shape(problem, most, **{name: int(chosen[name]) for name in KNOBS})
    sums = len(problem.layouts) * most * problem.n
    memory = shared_memory(sums, shape.split, shape.units) if shape.split > 1 else {}
    return (call(matvec_kernel(shape), problem, memory),)


def matvec_kernel(shape: Shape) -> Kernel:
    """The kernel of a schedule."""
    w = Writer()
    p = shape.problem
    w(f"rn = tl.program_id(0) * {shape.columns} + tl.arange(0, {shape.columns})")
    if p.n % shape.columns:
        w(f"mn = rn < {p.n}")
    if shape.split > 1:
        w("share = tl.program_id(1)")
    w(f"rc = tl.arange(0, {shape.span})")
    w(f"rt = tl.arange(0, {p.layout.words if p.is_packed else p.chunk})")
    if p.is_packed:
        emit_one(w, "rows")
    places = [_place(shape, m) for m in range(shape.most)]
    operands = [emit_operands(w, p, place) for place in places]
    sums = emit_sums(w, shape)
    if shape.split == 1:
        _results(w, shape, places, operands, sums)
    else:
        _shared_results(w, shape, places, operands, sums)
    grid = (str(shape.units), str(shape.split))
    note = f"{p.title}; up to {shape.most} rows; {shape}"
    return Kernel("matvec", parameters(p, shape.split > 1), w.text(), grid, warps=shape.warps, stages=1, note=note)


def _place(shape: Shape, m: int) -> Place:
    """Where the results of row `m` go."""
    columns = "mn" if shape.problem.n % shape.columns else ""
    if m == 0:
        return Place("0", "rn", columns, columns)
    return Place(f"tl.minimum({m}, rows - 1)", "rn", columns, f"rn < tl.where({m} < rows, {shape.problem.n}, 0)")


def _results(
    w: Writer, shape: Shape, places: list[Place], operands: list[dict[str, str]], sums: list[list[str]]
) -> None:
    for m, place in enumerate(places):
        emit_results(w, shape.problem, place, [product[m] for product in sums], operands[m])


def _shared_results(
    w: Writer, shape: Shape, places: list[Place], operands: list[dict[str, str]], sums: list[list[str]]
) -> None:
    """The last program of a unit has the sums of all; those of row `m` of product `i` are its sums `i * most + m`."""
    columns = "mn" if shape.problem.n % shape.columns else ""
    share = Share(shape.split, "tl.program_id(0)", "rn", str(shape.problem.n), f"({shape.columns},)", columns)
    with shared_sums(w, [total for product in sums for total in product], share) as totals:
        found = [totals[i * shape.most : (i + 1) * shape.most] for i in range(len(sums))]
        _results(w, shape, places, operands, found)
