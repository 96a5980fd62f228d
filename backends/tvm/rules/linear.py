"""Regions around a linear: matrix-vector kernels for few rows, matrix-matrix kernels for many."""

from __future__ import annotations

from irx.backends.tvm.elementwise import supports
from irx.backends.tvm.linear_region import LinearRegion, parse
from irx.backends.tvm.lowered import Call, Case, Choices, Lowered, Refusal
from irx.backends.tvm.templates.gemm import gemm_calls
from irx.backends.tvm.templates.matvec import ROWS, matvec_calls
from irx.backends.tvm.templates.matvec_shape import layouts_of
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
    if len({product.weight.format for product in region.products}) > 1:
        raise Refusal("two weights of different formats")
    return Lowered(tuple(_cases(region, choices)))


def _cases(region: LinearRegion, choices: Choices) -> list[Case]:
    """One case for every number of rows a kernel is made for, narrowed to what the region can have."""
    made = [(most if most < ROWS[-1] else MOST_ROWS, most) for most in ROWS]
    if isinstance(region.rows, int):
        block = next((block for most, block in made if region.rows <= most), None)
        return [Case(matvec_calls(region, block, choices) if block else _many(region, choices))]
    few = [Case(matvec_calls(region, block, choices), region.rows, most) for most, block in made]
    return [*few, Case(_many(region, choices))]


def _many(region: LinearRegion, choices: Choices) -> tuple[Call, ...]:
    return gemm_calls(region, layouts_of(region, choices.device), choices)
