"""Regions around a linear: matrix-vector kernels for few rows, matrix-matrix kernels for many."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from irx.backends.regions.linear_region import LinearRegion, parse
from irx.backends.regions.lowered import Call, Case, Choices, Lowered, Refusal
from irx.backends.tvm.elementwise import supports
from irx.backends.tvm.templates.choosing import merge_call
from irx.backends.tvm.templates.gemm import gemm_calls
from irx.backends.tvm.templates.gemm_shape import has_matrices, way
from irx.backends.tvm.templates.matvec import ROWS, matvec_calls
from irx.backends.tvm.templates.matvec_shape import layouts_of
from irx.ir.graph import Graph

MOST_ROWS = 2 * ROWS[-1]
"""Rows up to which weights are streamed for one or two blocks of rows."""


def rule(body: Graph, choices: Choices) -> Lowered | None:
    """Kernels for a body with a linear; None without one. Raises Refusal for what does not fit one kernel."""
    region = parse(body, chooses=True)
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
    makers = list(_makers(region, choices))
    last = () if region.best is None else (merge_call(region.best, region.rows),)
    if isinstance(region.rows, int):
        rows = region.rows
        return [Case((*next(make for most, make in makers if most is None or rows <= most)(), *last))]
    return [Case((*make(), *last), region.rows if most is not None else 1, most) for most, make in makers]


def _makers(region: LinearRegion, choices: Choices) -> Iterator[tuple[int | None, Callable[[], tuple[Call, ...]]]]:
    """The most rows of each kind of kernel, and what makes it.

    Packed weights are converted once for a few rows: from nine rows on that is cheaper than to unpack them for eight.
    """
    layouts = layouts_of(region, choices.device)
    unpacks = way(region, layouts, choices.device) in ("words", "bytes", "halves") and not has_matrices(choices.device)
    for most in ROWS:
        served = MOST_ROWS if most == ROWS[-1] and not unpacks else most
        yield served, partial(matvec_calls, region, most, choices)
    if unpacks:
        yield MOST_ROWS, partial(gemm_calls, region, layouts, choices, ROWS[-1] + 1)
    yield None, partial(gemm_calls, region, layouts, choices, MOST_ROWS + 1)
