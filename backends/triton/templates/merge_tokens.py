"""Merging tokens: size-weighted means of those that were matched, the others moved up.

A program takes a block of channels of a token, which looks for itself among those that go and finds what comes to it.
"""

from __future__ import annotations

from irx.backends.regions.lowered import Call
from irx.backends.triton.templates.attention_arguments import Arguments, Launch, times
from irx.backends.triton.templates.linear_shape import power_of_two
from irx.backends.triton.templates.token_elements import pointers
from irx.backends.triton.writer import Writer
from irx.ir.graph import Node

PAIRS = 32  # pairs that are looked at together
CHANNELS = 128


def merge_calls(node: Node) -> tuple[Call, ...]:
    """`merge_tokens`."""
    arguments, w = Arguments(), Writer()
    x, sizes, gone, into = node.inputs
    found = pointers(arguments, x=x, sizes=sizes, gone=gone, into=into, y=node.outputs[0], total=node.outputs[1])
    tokens, weights, pairs = found[:3]
    batch, length, width = (arguments.size(size) for size in tokens.shape)
    count = arguments.size(pairs.shape[1])
    block = min(CHANNELS, power_of_two(tokens.shape[2])) if isinstance(tokens.shape[2], int) else CHANNELS
    w("token = tl.program_id(0).to(tl.int64)")
    w(f"b = token // {length}")
    w(f"t = token % {length}")
    w(f"d = tl.program_id(1) * {block} + tl.arange(0, {block})")
    w(f"inside = d < {width}")
    size = w.load("sizes", "token", weights.dtype)
    own = w.load("x", f"token * {width} + d", tokens.dtype, "inside")
    w(f"summed = {own} * {size}")
    w("more = tl.zeros((), tl.int32)")
    w("goes = tl.zeros((), tl.int32)")
    w("before = tl.zeros((), tl.int32)")
    w(f"all = {size}")
    with w.block(f"for start in range(0, {count}, {PAIRS}):"):
        w(f"n = start + tl.arange(0, {PAIRS})")
        w(f"pair = n < {count}")
        w(f"source = tl.load(gone + b * {count} + n, mask=pair, other={1 << 30})")
        w(f"comes = pair & (tl.load(into + b * {count} + n, mask=pair, other=-1) == t)")
        w("goes += tl.sum((source == t).to(tl.int32), 0)")
        w("before += tl.sum((source < t).to(tl.int32), 0)")
        w("more += tl.sum(comes.to(tl.int32), 0)")
        share = w.load("sizes", f"b * {length} + source", weights.dtype, "comes")
        w(f"all += tl.sum({share}, 0)")
        place = f"(b * {length} + source)[:, None] * {width} + d[None, :]"
        other = w.load("x", place, tokens.dtype, "comes[:, None] & inside[None, :]")
        w(f"summed += tl.sum({other} * {share}[:, None], 0)")
    w("place = t - before")
    # Lists that are none, with a token twice, must not write elsewhere.
    with w.block(f"if (goes == 0) & (place >= 0) & (place < {length} - {count}):"):
        w(f"target = b * ({length} - {count}) + place")
        mean = w.let(f"tl.where((more > 0) & (all > 0), summed / tl.where(all > 0, all, 1.0), {own})", "mean")
        w.store("y", f"target * {width} + d", node.outputs[0].dtype, mean, "inside")
        w.store("total", "target", node.outputs[1].dtype, "all")
    grid = (times(batch, length), f"ceil({width}, {block})")
    return (arguments.call("merge_tokens", w, Launch(grid, 4), "size-weighted means of merged tokens"),)
