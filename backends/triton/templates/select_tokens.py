"""Choosing tokens by their scores: scores with their neighbours', the best tokens in order, and rows put in place.

The best are found by rank: every token counts those before it, so programs share the tokens and nothing is sorted. What
stays is then numbered the same way.
"""

from __future__ import annotations

from irx.backends.regions.lowered import Call, Temporary
from irx.backends.triton.templates.attention_arguments import Arguments, times
from irx.backends.triton.templates.token_elements import Elements, pointers
from irx.backends.triton.writer import loaded, narrowed
from irx.ir.dims import product
from irx.ir.graph import Node

TILE = 32  # tokens of a program, and tokens they are compared with at once: pairs of them lie in registers


def pool_calls(node: Node) -> tuple[Call, ...]:
    """`pool_scores`."""
    arguments = Arguments()
    (scores, y), width = pointers(arguments, scores=node.inputs[0], y=node.output), node.attr("width")
    assert isinstance(width, int)
    batch, length = (arguments.size(size) for size in scores.shape)
    kernel = Elements(times(batch, length), arguments)
    w, average = kernel.w, node.attr("how") != "max"
    w(f"t = i % {length}")
    start = "0.0" if average else "-float('inf')"
    found = w.let(f"tl.full(i.shape, {start}, tl.float32)", "found")
    with w.block(f"for j in range({-(width // 2)}, {width // 2 + 1}):"):
        near = w.let(f"mask & (t + j >= 0) & (t + j < {length})", "near")
        value = w.load("scores", "(i + j)", scores.dtype, near)
        w(f"{found} = {f'{found} + {value}' if average else f'tl.maximum({found}, {value})'}")
    w.store("y", "i", y.dtype, f"{found} / {float(width)}" if average else found, "mask")
    return (kernel.call("pool_scores", "scores with their neighbours'"),)


def topk_calls(node: Node) -> tuple[Call, ...]:
    """`topk_tokens`: which tokens stay, then their list."""
    scores = node.inputs[0]
    assert scores is not None
    stays = Temporary("stays", product(scores.shape) * 4)
    return _stays(node, stays), _listed(node, stays)


def _stays(node: Node, stays: Temporary) -> Call:
    arguments = Arguments()
    (scores,) = pointers(arguments, scores=node.inputs[0])
    arguments.pointer("stays", "i32", stays)
    batch, length = (arguments.size(size) for size in scores.shape)
    keep = arguments.size(node.output.shape[1])
    kernel = Elements(times(batch, length), arguments, TILE)
    w, first, last = kernel.w, node.attr("first") or 0, node.attr("last")
    last = 1 if last is None else last
    w(f"t = (i % {length})[:, None]")
    w(f"start = (i // {length} * {length})[:, None]")

    def ranked(index: str, place: str, mask: str) -> str:
        sure = f"({place} < {first}) | ({place} >= {length} - {last})"
        return w.let(f"tl.where({sure}, float('inf'), {loaded('scores', index, scores.dtype, mask)})", "score")

    own = ranked("i[:, None]", "t", "mask[:, None]")
    w(f"before = tl.zeros(({TILE},), tl.int32)")
    with w.block(f"for j in range(0, {length}, {TILE}):"):
        w(f"other = j + tl.arange(0, {TILE})[None, :]")
        inside = w.let(f"mask[:, None] & (other < {length})", "inside")
        score = ranked("start + other", "other", inside)
        w(f"ahead = ({score} > {own}) | (({score} == {own}) & (other < t))")
        w(f"before += tl.sum((ahead & {inside}).to(tl.int32), 1)")
    w(f"tl.store(stays + i, (before < {keep}).to(tl.int32), mask=mask)")
    return kernel.call("topk_ranks", "which tokens stay")


def _listed(node: Node, stays: Temporary) -> Call:
    arguments = Arguments()
    scores = node.inputs[0]
    assert scores is not None
    arguments.pointer("stays", "i32", stays)
    pointers(arguments, index=node.output)
    batch, length = (arguments.size(size) for size in scores.shape)
    keep = arguments.size(node.output.shape[1])
    kernel = Elements(times(batch, length), arguments, TILE)
    w = kernel.w
    w(f"t = i % {length}")
    w("start = (i - t)[:, None]")
    w(f"number = tl.zeros(({TILE},), tl.int64)")
    with w.block(f"for j in range(0, {length}, {TILE}):"):
        w(f"other = j + tl.arange(0, {TILE})[None, :]")
        w(f"earlier = mask[:, None] & (other < t[:, None]) & (other < {length})")
        w("number += tl.sum(tl.load(stays + start + other, mask=earlier, other=0), 1)")
    w("own = tl.load(stays + i, mask=mask, other=0)")
    w(f"listed = mask & (own != 0) & (number < {keep})")  # more would stay where scores are nan
    w(f"tl.store(index + i // {length} * {keep} + number, t, mask=listed)")
    return kernel.call("topk_list", "the tokens that stay, ascending")


def scatter_calls(node: Node) -> tuple[Call, ...]:
    """`scatter_tokens`: a copy, and the rows that are replaced."""
    arguments = Arguments()
    x, y = pointers(arguments, x=node.inputs[0], y=node.output)
    kernel = Elements(arguments.size(product(x.shape)), arguments)
    kernel.w(f"tl.store(y + i, {narrowed(loaded('x', 'i', x.dtype, 'mask'), y.dtype)}, mask=mask)")
    copy = kernel.call("scatter_copy", "tokens as they are")
    arguments = Arguments()
    source, index, y = pointers(arguments, source=node.inputs[2], index=node.inputs[1], y=node.output)
    length, count, width = (arguments.size(n) for n in (x.shape[1], index.shape[1], product(x.shape[2:])))
    kernel = Elements(arguments.size(product(source.shape)), arguments)
    w = kernel.w
    w(f"row = i // {width}")
    token = w.load("index", "row", index.dtype, "mask")
    place = w.let(f"(row // {count} * {length} + {token}) * {width} + i % {width}", "place")
    w.store("y", place, y.dtype, loaded("source", "i", source.dtype, "mask"), "mask")
    return copy, kernel.call("scatter_rows", "tokens that are replaced")
