"""The sums of a matrix-vector kernel: chunks of a few columns met by the same chunks of all rows of x.

Names in the kernel's text: `rn` [columns] the output columns, `rc` [span] and `rt` [elements of a load] as tl.arange;
`sum{p}_{m}` [columns, span] of product p and row m, and `squares{m}` where the norm is folded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from irx.backends.triton.templates.linear_codes import Codes, emit_codes, field
from irx.backends.triton.templates.linear_input import (
    Statistics,
    emit_statistics,
    emit_vectors,
    emit_x,
    masked,
)
from irx.backends.triton.templates.linear_shape import wide
from irx.backends.triton.templates.matvec_shape import Shape
from irx.backends.triton.writer import Writer


@dataclass(frozen=True)
class _Pass:
    """Names in one pass over chunks: their numbers [span], masks of chunks, and of columns and chunks (empty: all)."""

    chunk: str
    inside: str
    mask: str


Wait: TypeAlias = "Callable[[], None] | None"
"""Writes what comes before x is first read; None where x is there from the start."""


def emit_sums(w: Writer, shape: Shape, wait: Wait = None) -> list[list[str]]:
    """The sums of each product for every row: names of [columns] values."""
    p = shape.problem
    if not (_is_one_pass(shape) and (shape.folds or p.norm is None)):
        _do(wait)
        wait = None
    stats = _statistics(w, shape)
    for m in range(shape.most):
        for i in range(len(p.layouts)):
            w(f"sum{i}_{m} = tl.zeros(({shape.columns}, {shape.span}), tl.float32)")
        if shape.folds:
            w(f"squares{m} = tl.zeros(({_block_shape(shape)}), tl.float32)")
    _passes(w, shape, stats, wait)
    factors = [_factor(w, shape, m) for m in range(shape.most)]
    return [
        [w.let(f"tl.sum(sum{i}_{m}, 1){factors[m]}", "total") for m in range(shape.most)] for i in range(len(p.layouts))
    ]


def row_pointer(shape: Shape, m: int) -> str:
    """Where row `m` of x begins; a row behind the last one is read as the last, and not stored."""
    return "x" if shape.most == 1 else f"(x + tl.minimum({m}, rows - 1) * {shape.problem.k})"


def _statistics(w: Writer, shape: Shape) -> list[Statistics]:
    if shape.folds:
        return [Statistics()] * shape.most
    return [emit_statistics(w, shape.problem, row_pointer(shape, m), 0) for m in range(shape.most)]


def _elements(shape: Shape) -> int:
    """Elements of a chunk that are loaded together."""
    return shape.problem.layout.words if shape.problem.is_packed else shape.problem.chunk


def _block_shape(shape: Shape) -> str:
    """The shape of a block of x."""
    return f"{shape.copies}, {shape.span}, {_elements(shape)}"


def _block_columns(w: Writer, shape: Shape, column: str) -> str:
    """Columns [chunks, elements] as those of a block of x."""
    zeros = f" + tl.zeros(({shape.copies}, 1, 1), tl.int32)" if shape.copies > 1 else ""
    return w.let(f"({column})[None, :, :]{zeros}", "column")


def _for_all(shape: Shape, value: str, *inner: int) -> str:
    """A value [copies, *inner] for every output column."""
    if shape.copies in (1, shape.columns):
        return value
    sizes = "".join(f", {size}" for size in inner)
    every = ", ".join(":" for _ in range(len(inner) + 1))
    wide = f"tl.broadcast_to({value}[None, {every}], ({shape.columns // shape.copies}, {shape.copies}{sizes}))"
    return f"tl.reshape({wide}, ({shape.columns}{sizes or ','}))"


def _factor(w: Writer, shape: Shape, m: int) -> str:
    """What the sums of a row are multiplied by."""
    norm = shape.problem.region.norm
    if not shape.folds or norm is None:
        return ""
    mean = f"tl.sum(tl.sum(squares{m}, 2), 1) / {shape.problem.k}"
    scale = w.let(f"tl.rsqrt({mean} + {norm.eps!r})", "scale")
    return f" * {_for_all(shape, scale)}"


def _is_one_pass(shape: Shape) -> bool:
    return shape.split == 1 and shape.problem.chunks <= shape.span


def _do(wait: Wait) -> None:
    if wait is not None:
        wait()


def _passes(w: Writer, shape: Shape, stats: Sequence[Statistics], wait: Wait) -> None:
    chunks = shape.problem.chunks
    if _is_one_pass(shape):
        _one_pass(w, shape, "0", str(chunks), stats, wait)
        return
    first = w.let(f"share * {shape.share}", "first") if shape.split > 1 else "0"
    last = w.let(f"tl.minimum({first} + {shape.share}, {chunks})", "last") if shape.split > 1 else str(chunks)
    stages = f", num_stages={shape.stages}" if shape.stages > 1 else ""
    with w.block(f"for start in tl.range({first}, {last}, {shape.span}{stages}):"):
        _one_pass(w, shape, "start", last, stats)


def _one_pass(w: Writer, shape: Shape, start: str, last: str, stats: Sequence[Statistics], wait: Wait = None) -> None:
    chunk = "rc" if start == "0" else w.let(f"{start} + rc", "chunk")
    inside = "" if shape.is_whole else w.let(f"{chunk} < {last}", "inside")
    columns = "" if shape.problem.n % shape.columns == 0 else "mn"
    parts = [f"{columns}[:, None]" if columns else "", f"{inside}[None, :]" if inside else ""]
    mask = " & ".join(part for part in parts if part)
    step = _Pass(chunk, inside, w.let(mask, "mask") if mask and inside else mask)
    (_packed_pass if shape.problem.is_packed else _float_pass)(w, shape, step, stats, wait)


# --- floats ---------------------------------------------------------------------------------------------------------


def _float_pass(w: Writer, shape: Shape, step: _Pass, stats: Sequence[Statistics], wait: Wait) -> None:
    p = shape.problem
    flat = w.let(f"{step.chunk}[:, None] * {p.chunk} + rt[None, :]", "column")
    inside = "" if shape.is_whole else w.let(f"({flat} < {p.k})[None, :, :]", "inside")
    limits = ["mn[:, None, None]" if p.n % shape.columns else "", inside]
    mask = " & ".join(limit for limit in limits if limit)
    place = w.let(f"(rn{wide(p.n, p.layout.depth)} * {p.layout.depth})[:, None, None] + {flat}[None, :, :]", "place")
    weights = [w.let(f"tl.load(w{i}_data + {place}{masked(mask)}).to(tl.float32)", "w") for i in range(len(p.layouts))]
    column = _block_columns(w, shape, flat)
    vectors = emit_vectors(w, p, column, inside)
    _do(wait)
    for m in range(shape.most):
        squares = f"squares{m}" if shape.folds else ""
        x = emit_x(w, p, f"{row_pointer(shape, m)} + {column}", inside, vectors, stats[m], squares)
        x = _for_all(shape, x, shape.span, p.chunk)
        for i, weight in enumerate(weights):
            w(f"sum{i}_{m} += tl.sum({weight} * {x}, 2)")


# --- codes ----------------------------------------------------------------------------------------------------------


def _packed_pass(w: Writer, shape: Shape, step: _Pass, stats: Sequence[Statistics], wait: Wait) -> None:
    p = shape.problem
    words, rows, products = p.layout.words, range(shape.most), range(len(p.layouts))
    codes = [
        emit_codes(w, layout, {part: f"w{i}_{part}" for part in layout.parts}, "rn", step.chunk, step.mask)
        for i, layout in enumerate(p.layouts)
    ]
    _do(wait)
    for m in rows:
        w(f"xs{m} = tl.zeros(({_block_shape(shape)}), tl.float32)")
        for i in products:
            w(f"dot{i}_{m} = tl.zeros(({shape.columns}, {shape.span}, {words}), tl.float32)")
    inside = f"{step.inside}[None, :, None]" if step.inside else ""
    for f in range(p.layout.fields):
        column = _block_columns(w, shape, f"{step.chunk}[:, None] * {p.chunk} + ({f * words} + rt[None, :])")
        vectors = emit_vectors(w, p, column, inside)
        floats = [w.let(field(code, f), "f") for code in codes]
        for m in rows:
            squares = f"squares{m}" if shape.folds else ""
            x = emit_x(w, p, f"{row_pointer(shape, m)} + {column}", inside, vectors, stats[m], squares)
            w(f"xs{m} += {x}")
            x = _for_all(shape, x, shape.span, words)
            for i in products:
                w(f"dot{i}_{m} += {floats[i]} * {x}")
    for m in rows:
        total = w.let(_for_all(shape, f"tl.sum(xs{m}, 2)", shape.span), "xs")
        for i in products:
            _add_scaled(w, codes[i], f"sum{i}_{m}", f"tl.sum(dot{i}_{m}, 2)", total)


def _add_scaled(w: Writer, codes: Codes, target: str, dot: str, total: str) -> None:
    """Add the product of chunks, from the sum of their floats 1 + code / steps, and that of x."""
    offset = codes.steps + codes.coding.zero
    minimum = f" + {codes.minimum} * {total}" if codes.minimum else ""
    w(f"{target} += {codes.scale} * ({codes.steps}.0 * {dot} - {offset}.0 * {total}){minimum}")
