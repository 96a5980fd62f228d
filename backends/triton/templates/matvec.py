"""Products of few rows with a weight (decoding): every weight is read once, for all rows.

for my columns: [norm of x] -> chunk sums in registers -> [the sums of programs that share them] -> epilogue
"""

from __future__ import annotations

from collections.abc import Callable

from irx.backends.regions.lowered import Binding, Call, Choices
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
    shape = shape_of(problem, most, choices)
    return (call(matvec_kernel(shape), problem, memory_of(shape)),)


def shape_of(problem: Problem, most: int, choices: Choices) -> Shape:
    """The schedule that is chosen for up to `most` rows."""
    chosen = choices.schedule("matvec", f"{problem.bucket} rows{most}", defaults(problem, most))
    return Shape(problem, most, **{name: int(chosen[name]) for name in KNOBS})


def memory_of(shape: Shape) -> dict[str, Binding]:
    """Where programs leave what they share."""
    sums = len(shape.problem.layouts) * shape.most * shape.problem.n
    return shared_memory(sums, shape.split, shape.units) if shape.split > 1 else {}


def matvec_kernel(shape: Shape) -> Kernel:
    """The kernel of a schedule."""
    w = Writer()
    w("unit = tl.program_id(0)")
    if shape.split > 1:
        w("share = tl.program_id(1)")
    emit_program(w, shape)
    grid = (str(shape.units), str(shape.split))
    pointers = parameters(shape.problem, shape.split > 1)
    return Kernel("matvec", pointers, w.text(), grid, warps=shape.warps, stages=1, note=note_of(shape))


def note_of(shape: Shape) -> str:
    """What a kernel of a schedule computes, in a line."""
    return f"{shape.problem.title}; up to {shape.most} rows; {shape}"


def emit_program(w: Writer, shape: Shape, wait: Callable[[], None] | None = None) -> None:
    """What one program does, which knows its `unit` and, of several, its `share`.

    `wait` writes what has to be done before x may be read: as late as possible, while weights are on their way.
    """
    p = shape.problem
    w(f"rn = unit * {shape.columns} + tl.arange(0, {shape.columns})")
    if p.n % shape.columns:
        w(f"mn = rn < {p.n}")
    w(f"rc = tl.arange(0, {shape.span})")
    w(f"rt = tl.arange(0, {p.layout.words if p.is_packed else p.chunk})")
    if p.is_packed:
        emit_one(w, "rows")
    places = [_place(shape, m) for m in range(shape.most)]
    operands = [emit_operands(w, p, place) for place in places]
    sums = emit_sums(w, shape, wait)
    if shape.split == 1:
        _results(w, shape, places, operands, sums)
    else:
        _shared_results(w, shape, places, operands, sums)


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
    share = Share(shape.split, "unit", "rn", str(shape.problem.n), f"({shape.columns},)", columns)
    with shared_sums(w, [total for product in sums for total in product], share) as totals:
        found = [totals[i * shape.most : (i + 1) * shape.most] for i in range(len(sums))]
        _results(w, shape, places, operands, found)
