"""Regions around a linear: kernels that stream weights for a few rows, matrix instructions for more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from irx.backends.regions.linear_region import LinearRegion, parse
from irx.backends.regions.lowered import Call, Case, Choices, Lowered, Refusal
from irx.backends.triton.elementwise import supports
from irx.backends.triton.templates import gemm, matvec
from irx.backends.triton.templates.choosing import choose_calls
from irx.backends.triton.templates.linear_shape import problem_of
from irx.ir.graph import Graph


def rule(body: Graph, choices: Choices) -> Lowered | None:
    """Kernels for a body with a linear; None without one. Raises Refusal for what does not fit one kernel."""
    region = parse(body, chooses=True)
    if region is None:
        return None
    for node in region.epilogue:
        if reason := supports(node):
            raise Refusal(reason)
    return Lowered(tuple(_cases(region, choices)))


def _cases(region: LinearRegion, choices: Choices) -> list[Case]:
    """One case for every number of rows a kernel is made for, narrowed to what the region can have."""
    makers = list(_makers(region, choices))
    last = () if region.best is None else choose_calls(region.best, region.rows, region.n)
    if isinstance(region.rows, int):
        rows = region.rows
        return [Case((*next(make for most, make in makers if most is None or rows <= most)(), *last))]
    return [Case((*make(), *last), region.rows if most is not None else 1, most) for most, make in makers]


def _makers(region: LinearRegion, choices: Choices) -> Iterator[tuple[int | None, Callable[[], tuple[Call, ...]]]]:
    """The most rows of each kind of kernel, and what makes it."""
    problem = problem_of(region, choices.device)
    for few in matvec.ROWS:
        yield few, partial(matvec.matvec_calls, problem, few, choices)
    for most in (*gemm.ROWS, None):
        yield most, partial(gemm.gemm_calls, problem, most, choices)
