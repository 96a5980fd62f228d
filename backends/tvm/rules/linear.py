"""Regions around a linear: matrix-vector kernels for few rows, matrix-matrix kernels for many."""

from __future__ import annotations

from irx.backends.tvm.elementwise import supports
from irx.backends.tvm.linear_region import LinearRegion, parse
from irx.backends.tvm.lowered import Case, Choices, Lowered, Refusal
from irx.backends.tvm.templates.matvec import ROWS, matvec_calls
from irx.ir.graph import Graph

MOST_ROWS = 2 * ROWS[-1]
"""Rows up to which weights are streamed for one or two blocks of rows."""


def rule(body: Graph, choices: Choices) -> Lowered | None:
    """Kernels for a body with a linear; None without one. Raises Refusal for what does not fit one kernel."""
    region = parse(body)
    if region is None:
        return None
    for node in region.epilogue:
        if reason := supports(node):
            raise Refusal(reason)
    return Lowered(tuple(_cases(region, choices)))


def _cases(region: LinearRegion, choices: Choices) -> list[Case]:
    """One case for every number of rows a kernel is made for, narrowed to what the region can have."""
    cases = []
    for most in ROWS:
        if isinstance(region.rows, int) and most < ROWS[-1] and region.rows > most:
            continue
        cases.append(Case(matvec_calls(region, most, choices), region.rows, most))
        if isinstance(region.rows, int) and region.rows <= most:
            break
    last = cases.pop()
    return [*cases, Case(last.calls)]
