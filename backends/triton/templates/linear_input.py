"""Rows of x inside a kernel: loaded as float32, normalized, rounded.

An rms_norm multiplies a whole row by one number, so a kernel that meets a row once can multiply the product by it
afterwards: `folded`, it sums the squares on the way. Otherwise statistics are computed before, in a pass of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.backends.triton.templates.linear_shape import Problem, power_of_two
from irx.backends.triton.writer import Writer

STATISTICS_BLOCK = 2048


@dataclass(frozen=True)
class Statistics:
    """Names of what rows are normalized with: `scale` 1 / rms or 1 / deviation, `mean` (empty: none)."""

    scale: str = ""
    mean: str = ""


@dataclass(frozen=True)
class Vectors:
    """Texts of the norm's weight and bias at some columns, as float32 (empty: none)."""

    weight: str = ""
    bias: str = ""


def masked(mask: str) -> str:
    """The arguments of a load that reads 0 outside of `mask`."""
    return f", mask={mask}, other=0.0" if mask else ""


def emit_vectors(w: Writer, problem: Problem, column: str, mask: str) -> Vectors:
    """The norm's vectors at `column`."""
    norm = problem.norm
    if norm is None:
        return Vectors()

    def read(name: str) -> str:
        return w.let(f"tl.load({name} + {column}{masked(mask)}).to(tl.float32)", "n")

    return Vectors(read("norm_weight") if norm.weight else "", read("norm_bias") if norm.bias else "")


def emit_x(
    w: Writer, problem: Problem, place: str, mask: str, vectors: Vectors, stats: Statistics, squares: str = ""
) -> str:
    """x at `place` (a pointer and an index) as the product wants it, 0 outside of `mask`; float32.

    With `squares` those of x are added to it, and x is not yet scaled.
    """
    x = w.let(f"tl.load({place}{masked(mask)}).to(tl.float32)", "x")
    if squares:
        w(f"{squares} += {x} * {x}")
    text = f"({x} - {stats.mean})" if stats.mean else x
    for factor in (stats.scale, vectors.weight):
        text += f" * {factor}" if factor else ""
    text += f" + {vectors.bias}" if vectors.bias else ""
    if mask and (stats.mean or vectors.bias):
        text = f"tl.where({mask}, {text}, 0.0)"
    if problem.rounds_x and not squares:
        text = f"({text}).to(tl.bfloat16).to(tl.float32)"
    return text if text == x else w.let(text, "x")


def emit_statistics(w: Writer, problem: Problem, base: str, rows: int) -> Statistics:
    """Statistics of `rows` rows that begin at the pointers `base` [rows, 1], or (0 rows) of one at a pointer.

    They have the shape [rows, 1], or are scalars.
    """
    norm, k = problem.norm, problem.k
    if norm is None:
        return Statistics()
    block = max(16, min(power_of_two(k), STATISTICS_BLOCK // max(1, rows // 4)))
    mean = ""
    if norm.op == "layer_norm":
        mean = w.let(f"{_summed(w, base, rows, block, k, '')} / {k}", "mean")
    variance = f"{_summed(w, base, rows, block, k, mean, squared=True)} / {k}"
    return Statistics(w.let(f"tl.rsqrt({variance} + {norm.eps!r})", "scale"), mean)


def _summed(w: Writer, base: str, rows: int, block: int, k: int, mean: str, squared: bool = False) -> str:
    """The sum of each row, or of the squares of its differences from `mean`."""
    total, start = w.fresh("sums"), w.fresh("k")
    whole = k % block == 0
    w(f"{total} = tl.zeros(({f'{rows}, ' if rows else ''}{block},), tl.float32)")
    with w.block(f"for {start} in range(0, {k}, {block}):"):
        column = w.let(f"{start} + tl.arange(0, {block})", "column")
        column = f"{column}[None, :]" if rows else column
        mask = "" if whole else f"{column} < {k}"
        x = w.let(f"tl.load({base} + {column}{masked(mask)}).to(tl.float32)", "x")
        if squared:
            away = f"{x} - {mean}" if mean else x
            away = w.let(f"tl.where({mask}, {away}, 0.0)" if mean and mask else away, "away")
        w(f"{total} += {f'{away} * {away}' if squared else x}")
    return f"tl.sum({total}, 1)[:, None]" if rows else f"tl.sum({total}, 0)"
