"""Attention of many queries, without a matrix of scores: a block of queries against the tiles of keys that it sees."""

from __future__ import annotations

from irx.backends.regions.lowered import Call, Temporary
from irx.backends.tvm.arguments import whole
from irx.backends.tvm.templates.attention_form import BLOCK, KEYS, Form
from irx.backends.tvm.templates.attention_kernel import (
    AttentionKernel,
    Sources,
    declare_result,
    sink_of,
    tile_span,
    weight_inverse_below,
)
from irx.backends.tvm.templates.attention_mixed import MixedKernel
from irx.backends.tvm.templates.attention_prefix import fold_prefix, tiles_of
from irx.backends.tvm.templates.attention_tile import Sums, begin
from irx.backends.tvm.templates.tile_codes import PAIRED
from irx.backends.tvm.writer import at


def blocks(f: Form, x: Sources, queries: int) -> Call:
    """Attention of many queries, `queries` of them (and all heads that share a KV head) at a time."""
    rows = -(-queries * f.shared // f.rows) * f.rows
    kernel = AttentionKernel(f, x) if x.recent is None else MixedKernel(f, x, rows)
    kernel.read()
    w, add = kernel.w, kernel.arguments.pointer
    scratch = rows if x.recent is None else 2 * rows
    for name, width in (("o", rows * f.v_width), ("m", rows * 16), ("l", rows * BLOCK), ("s", scratch * KEYS)):
        add(name, "float32", Temporary(f"block_{name}", width * 4, per_thread=True))
    if f.dot == "dpbf16":
        add("p", "int32", Temporary("block_p", scratch * KEYS * 2, per_thread=True))
    declare_result(kernel)
    strides = [kernel.arguments.size(n) for n in x.out_strides]
    heads = whole(w, f"{kernel.batch} * {f.groups}")
    parts = whole(w, f"({kernel.length} + {queries - 1}) // {queries}")
    # Later queries see more keys: they go first, and threads take turns.
    with w.block(f"for turn in T.serial(({parts} * {heads} - tid + nt - 1) // nt):"):
        task = whole(w, "tid + turn * nt")
        first = whole(w, f"({parts} - 1 - {task} // {heads}) * {queries}")
        b, g = whole(w, f"({task} % {heads}) // {f.groups}"), whole(w, f"{task} % {f.groups}")
        _block(kernel, b, g, first, queries, (rows, scratch), strides)
    note = f"attention to {f.store.name if x.recent is None else x.recent.store.name} keys, in blocks"
    llvm = f.llvm + (PAIRED if x.recent is not None and f.dot == "dpbf16" else "")
    return kernel.arguments.call("attention_blocks", w, note, llvm=llvm)


def _block(
    kernel: AttentionKernel, b: str, g: str, first: str, queries: int, room: tuple[int, int], strides: list[str]
) -> None:
    """`room` has the rows of sums and of scores."""
    w, f = kernel.w, kernel.f
    rows, scratch = room
    last = whole(w, f"T.min({first} + {queries}, {kernel.length})")
    count = whole(w, f"({last} - {first}) * {f.shared}")
    sums = Sums(*(whole(w, f"tid * {rows * width}") for width in (f.v_width, 16, BLOCK)))
    begin(w, f, sums, count)
    lowest, latest, least, most = kernel.bounds(b, first, last)
    span = tile_span(w, f, lowest, most)
    q_row = kernel.query_row(b, g, first)
    if f.prefix:
        with kernel.tiles("T.int64(0)", tiles_of(kernel)) as tile:
            fold_prefix(kernel, g, q_row, sums, f"tid * {scratch}", tile, count)
    with kernel.tiles("T.int64(0)", span.count, span) as tile:
        a = kernel.places(b, g, q_row, sums, f"tid * {scratch}", tile, most, count)
        kernel.fold(a, b, g, first, f"{tile} >= {latest} and {tile} + {KEYS} <= {least}")
    with w.block(f"for r in T.serial({count}):"):
        head = f"({g} * {f.shared} + r % {f.shared})"
        sink = sink_of(kernel, head)
        top = w.register(f"m[{sums.m} + r]", lanes=1)
        scale = weight_inverse_below(w, at("l", f"{sums.total} + r * {BLOCK}"), sink, top)
        kernel.write(f"{sums.o} + r * {f.v_width}", scale, b, head, f"({first} + r // {f.shared})", strides)
