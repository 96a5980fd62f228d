"""Attention of a few queries: threads share the keys of all rows, then what they have found is added up.

Every thread gets the same number of tiles, whatever the rows' lengths (Flash-Decoding, Dao et al. 2023), and leaves a
maximum, a sum and an output for each row that it has seen keys of.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from irx.backends.regions.lowered import Call, Temporary
from irx.backends.tvm import vector_math
from irx.backends.tvm.arguments import whole
from irx.backends.tvm.templates.attention_form import BLOCK, KEYS, Form
from irx.backends.tvm.templates.attention_kernel import (
    AttentionKernel,
    Sources,
    Span,
    declare_result,
    sink_of,
    tile_span,
    weight_inverse,
)
from irx.backends.tvm.templates.attention_pairs import functions, kernel_of
from irx.backends.tvm.templates.attention_prefix import fold_prefix, tiles_of
from irx.backends.tvm.templates.attention_tile import Sums, begin
from irx.backends.tvm.writer import Writer, at, splat
from irx.ir.dims import Dim


def split_temporaries(f: Form, x: Sources) -> dict[str, Temporary]:
    """What the threads of `split` leave for `combine`: outputs, maxima and sums of every row, by thread."""
    rows = x.batch * f.groups * (x.length * f.shared + f.rows)
    rows = rows + f.groups * _together(f, x) if f.prefix else rows
    return {
        "o": Temporary("o", rows * f.v_width * 4, per_thread=True),
        "m": Temporary("m", rows * 4, per_thread=True),
        "l": Temporary("l", rows * BLOCK * 4, per_thread=True),
    }


def _together(f: Form, x: Sources) -> Dim:
    """Rows of one KV head of all rows of the batch, padded."""
    return x.batch * x.length * f.shared + f.rows


def split(f: Form, x: Sources) -> tuple[Call, ...]:
    """Attention of a few queries: two calls."""
    left = split_temporaries(f, x)
    return _split(replace(f, fetches=True), x, left), _combine(f, x, left)


def _split(f: Form, x: Sources, left: dict[str, Temporary]) -> Call:
    kernel = kernel_of(f, x)
    kernel.read()
    w, add = kernel.w, kernel.arguments.pointer
    for name, temporary in left.items():
        add(name, "float32", temporary)
    rows = _together(f, x) if f.prefix else x.length * f.shared + f.rows
    add("s", "float32", Temporary("s", rows * KEYS * 4, per_thread=True))
    if f.dot == "dpbf16":
        add("p", "int32", Temporary("p", rows * KEYS * 2, per_thread=True))
    count = whole(w, f"{kernel.length} * {f.shared}")
    room = whole(w, f"{count} + {f.rows}")
    mine = whole(w, f"tid * {_stride(kernel, room)}")
    scratch = whole(w, f"tid * {kernel.arguments.size(rows)}")
    first, end = _share(kernel)
    if f.prefix:
        _prefix(kernel, mine, room, count, scratch, first, end)
    with _heads(kernel) as head:
        from_tile = whole(w, f"T.max({first} - {head.done}, T.int64(0))")
        to_tile = whole(w, f"T.min({end} - {head.done}, {head.span.count})")
        with w.block(f"if {from_tile} < {to_tile}:"):
            row = whole(w, f"{mine} + (b * {f.groups} + g) * {room}")
            _segment(kernel, row, count, scratch, (from_tile, to_tile), head)
    return kernel.arguments.call("attention_split", w, f"attention to {f.store.name} keys, split", llvm=functions(f))


def _stride(kernel: AttentionKernel, room: str) -> str:
    """Rows that each thread leaves: of every head of every row, then of every head of the prefix."""
    own = f"{kernel.batch} * {kernel.f.groups} * {room}"
    if not kernel.f.prefix:
        return f"({own})"
    return f"({own} + {kernel.f.groups} * {kernel.arguments.size(_together(kernel.f, kernel.x))})"


def _prefix_row(kernel: AttentionKernel, room: str, g: str) -> str:
    """The first row of a head of the prefix among those of a thread."""
    own = f"{kernel.batch} * {kernel.f.groups} * {room}"
    return f"({own} + {g} * {kernel.arguments.size(_together(kernel.f, kernel.x))})"


def _prefix(kernel: AttentionKernel, mine: str, room: str, count: str, scratch: str, first: str, end: str) -> None:
    """The tiles of the prefix that fall to this thread, which are counted before all others."""
    w, f = kernel.w, kernel.f
    tiles, all_rows = tiles_of(kernel), whole(w, f"{kernel.batch} * {count}")
    with w.block(f"for g in T.serial({f.groups}):"):
        from_tile = whole(w, f"T.max({first} - g * {tiles}, T.int64(0))")
        to_tile = whole(w, f"T.min({end} - g * {tiles}, {tiles})")
        with w.block(f"if {from_tile} < {to_tile}:"):
            row = whole(w, f"{mine} + {_prefix_row(kernel, room, 'g')}")
            sums = Sums(whole(w, f"{row} * {f.v_width}"), row, whole(w, f"{row} * {BLOCK}"))
            begin(w, f, sums, all_rows)
            with kernel.tiles(from_tile, to_tile) as tile:
                fold_prefix(kernel, "g", f"g * {all_rows}", sums, scratch, tile, all_rows)


@dataclass(frozen=True)
class _Head:
    """Names in the loops over rows `b` and heads `g`: tiles `done` before this head, its own, and what its queries see,
    as `bounds` gives it."""

    done: str
    span: Span
    latest: str
    least: str
    most: str


@contextmanager
def _heads(kernel: AttentionKernel) -> Iterator[_Head]:
    """Statements for every head of every row, in the order in which their tiles are counted."""
    w = kernel.w
    done = w.register(_prefix_tiles(kernel), dtype="int64", lanes=1)
    with w.block(f"for b in T.serial({kernel.batch}):"):
        lowest, latest, least, most = kernel.bounds("b", "T.int64(0)", kernel.length)
        span = tile_span(w, kernel.f, lowest, most)
        with w.block(f"for g in T.serial({kernel.f.groups}):"):
            yield _Head(done, span, latest, least, most)
            w(f"{done} = {done} + {span.count}")


def _segment(kernel: AttentionKernel, row: str, count: str, scratch: str, mine: tuple[str, str], head: _Head) -> None:
    """The tiles of one head that fall to this thread."""
    w, f = kernel.w, kernel.f
    sums = Sums(whole(w, f"{row} * {f.v_width}"), row, whole(w, f"{row} * {BLOCK}"))
    q_row = kernel.query_row("b", "g", "T.int64(0)")
    begin(w, f, sums, count)
    with kernel.tiles(*mine, head.span) as tile:
        ahead = kernel.ahead(tile, head.span.start, head.span.at(mine[1]))
        a = kernel.places("b", "g", q_row, sums, scratch, tile, head.most, count, ahead)
        unmasked = f"{tile} >= {head.latest} and {tile} + {KEYS} <= {head.least}"
        kernel.fold(a, "b", "g", "T.int64(0)", unmasked)


def _share(kernel: AttentionKernel, thread: str = "tid") -> tuple[str, str]:
    """The first and last tile, counted over rows and heads, of a thread."""
    return _share_of(kernel.w, _all_tiles(kernel), thread)


def _all_tiles(kernel: AttentionKernel) -> str:
    w = kernel.w
    every = w.register(_prefix_tiles(kernel), dtype="int64", lanes=1)
    with w.block(f"for b in T.serial({kernel.batch}):"):
        lowest, _, _, most = kernel.bounds("b", "T.int64(0)", kernel.length)
        span = tile_span(w, kernel.f, lowest, most)
        w(f"{every} = {every} + {span.count} * {kernel.f.groups}")
    return every


def _prefix_tiles(kernel: AttentionKernel) -> str:
    """How many tiles the prefix has in all heads."""
    return f"{tiles_of(kernel)} * {kernel.f.groups}" if kernel.f.prefix else "T.int64(0)"


def _share_of(w: Writer, every: str, thread: str) -> tuple[str, str]:
    return whole(w, f"{every} * {thread} // nt"), whole(w, f"{every} * ({thread} + 1) // nt")


def _combine(f: Form, x: Sources, left: dict[str, Temporary]) -> Call:
    """out = the sum over threads, weighted by how far each one's maximum is below the highest."""
    kernel = AttentionKernel(f, x)
    w, add = kernel.w, kernel.arguments.pointer
    for name, temporary in left.items():
        add(name, "float32", temporary)
    declare_result(kernel)
    strides = [kernel.arguments.size(n) for n in x.out_strides]
    count = whole(w, f"{kernel.length} * {f.shared}")
    room = whole(w, f"{count} + {f.rows}")
    stride = whole(w, _stride(kernel, room))
    every = _all_tiles(kernel)
    with _heads(kernel) as head:
        number = whole(w, f"(b * {f.groups} + g) * {count}")
        # Row r falls to thread (number + r) % nt.
        skipped = whole(w, f"(tid + nt - {number} % nt) % nt")
        with w.block(f"for turn in T.serial(({count} - {skipped} + nt - 1) // nt):"):
            r = whole(w, f"{skipped} + turn * nt")
            parts = [_Part(head.done, head.span.count, f"(b * {f.groups} + g) * {room} + {r}")]
            if f.prefix:
                tiles = tiles_of(kernel)
                shared = f"{_prefix_row(kernel, room, 'g')} + b * {count} + {r}"
                parts.append(_Part(whole(w, f"g * {tiles}"), tiles, shared))
            _combine_row(kernel, r, every, parts, stride, strides)
    return kernel.arguments.call("attention_combine", w, "adds up split attention")


@dataclass(frozen=True)
class _Part:
    """What threads have left of one row: the tiles it is from, and which of a thread's rows it is."""

    done: str
    tiles: str
    row: str


def _combine_row(
    kernel: AttentionKernel, r: str, every: str, parts: list[_Part], step: str, strides: list[str]
) -> None:
    w, f = kernel.w, kernel.f
    head = f"(g * {f.shared} + {r} % {f.shared})"
    top = w.register("T.float32(-1e30)", lanes=1)
    for part in parts:
        with _contributors(w, every, part.done, part.tiles) as thread:
            w(f"{top} = T.max({top}, m[{thread} * {step} + {part.row}])")
    sink = sink_of(kernel, head)
    if sink is not None:
        w(f"{top} = T.max({top}, {sink})")
    weight = w.register("T.broadcast(T.float32(0), 16)")
    sums = [w.register("T.broadcast(T.float32(0), 16)") for _ in range(f.v_width // 16)]
    for part in parts:
        with _contributors(w, every, part.done, part.tiles) as thread:
            at_row = whole(w, f"{thread} * {step} + {part.row}")
            share = vector_math.exp2(w, splat(f"(m[{at_row}] - {top})"))
            w(f"{weight} = {weight} + {share} * {at('l', f'{at_row} * {BLOCK}')}")
            for v, value in enumerate(sums):
                w(f"{value} = {value} + {share} * {at('o', f'{at_row} * {f.v_width} + {v * 16}')}")
    scale = weight_inverse(w, weight, sink, top)
    # The first thread's copy of the row is nobody else's: the sums go there on their way out.
    own = whole(w, f"({parts[0].row}) * {f.v_width}")
    for v, value in enumerate(sums):
        w(f"{at('o', f'{own} + {v * 16}')} = {value}")
    kernel.write(own, scale, "b", head, f"({r} // {f.shared})", strides)


@contextmanager
def _contributors(w: Writer, every: str, done: str, tiles: str) -> Iterator[str]:
    """For the threads that have tiles of a head which begins at tile `done`."""
    with w.block("for thread in T.serial(nt):"):
        first, end = _share_of(w, every, "thread")
        overlap = f"T.max({first}, {done}) < T.min({end}, {done} + {tiles})"
        with w.block(f"if {overlap}:"):
            yield "thread"
