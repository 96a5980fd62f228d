"""Choosing tokens by their scores: scores with their neighbours', the best tokens in order, and rows put in place.

The best are found by rank: every token counts those before it, so threads share the tokens and nothing is sorted.
"""

from __future__ import annotations

from irx.backends.regions.lowered import Call, Data, Temporary
from irx.backends.tvm.arguments import Arguments, times, whole
from irx.backends.tvm.lanes import load
from irx.backends.tvm.templates.conv_shape import share
from irx.backends.tvm.writer import STORAGE, Writer
from irx.ir.dims import product
from irx.ir.graph import Node, Value

_SURE = 'T.float32("inf")'


def pool_calls(node: Node) -> tuple[Call, ...]:
    """`pool_scores`."""
    w, arguments = Writer(), Arguments()
    (scores, y), width = _pointers(arguments, scores=node.inputs[0], y=node.output), node.attr("width")
    assert isinstance(width, int)
    batch, length = (arguments.size(size) for size in scores.shape)
    average = node.attr("how") == "avg"
    with w.block(share(times(batch, length))):
        t = whole(w, f"item % {length}")
        found = w.register("T.float32(0)" if average else 'T.float32("-inf")', lanes=1)
        with w.block(f"for j in T.serial({width}):"):
            near = whole(w, f"{t} + j - {width // 2}")
            value = w.register("T.float32(0)", lanes=1)
            with w.block(f"if {near} >= 0 and {near} < {length}:"):
                w(f"{value} = {load(w, 'scores', f'item + j - {width // 2}', scores.dtype, 1)}")
            w(f"{found} = {f'{found} + {value}' if average else f'T.max({found}, {value})'}")
        w.store("y", "item", y.dtype, f"{found} * T.float32({1 / width if average else 1.0!r})", 1)
    return (arguments.call("pool_scores", w, "scores with their neighbours'"),)


def topk_calls(node: Node) -> tuple[Call, ...]:
    """`topk_tokens`: scores with those of protected tokens raised, then ranks, then the list."""
    scores = node.inputs[0]
    assert scores is not None
    ranked = Temporary("ranked", product(scores.shape) * 4)
    stays = Temporary("stays", product(scores.shape) * 8)
    return _ranked(node, scores, ranked), _stays(node, scores, ranked, stays), _listed(node, scores, stays)


def _ranked(node: Node, scores: Value, ranked: Temporary) -> Call:
    w, arguments = Writer(), Arguments()
    _pointers(arguments, scores=scores)
    arguments.pointer("ranked", "float32", ranked)
    batch, length = (arguments.size(size) for size in scores.shape)
    with w.block(share(times(batch, length))):
        t = whole(w, f"item % {length}")
        sure = f"{t} < T.int64({node.attr('first')}) or {t} >= {length} - T.int64({node.attr('last')})"
        w(f"ranked[item] = T.Select({sure}, {_SURE}, {load(w, 'scores', 'item', scores.dtype, 1)})")
    return arguments.call("topk_scores", w, "scores, those of protected tokens above all")


def _stays(node: Node, scores: Value, ranked: Temporary, stays: Temporary) -> Call:
    w, arguments = Writer(), Arguments()
    arguments.pointer("ranked", "float32", ranked)
    arguments.pointer("stays", "int64", stays)
    batch, length = (arguments.size(size) for size in scores.shape)
    keep = arguments.size(node.output.shape[1])
    with w.block(share(times(batch, length))):
        start = whole(w, f"item // {length} * {length}")
        t = whole(w, f"item % {length}")
        own = w.register("ranked[item]", lanes=1)
        before = w.register("T.int32(0)", dtype="int32", lanes=1)
        with w.block(f"for j in T.serial({t}):"):
            w(f"{before} = {before} + T.Select(ranked[{start} + j] >= {own}, 1, 0)")
        with w.block(f"for j in T.serial({length} - {t}):"):
            w(f"{before} = {before} + T.Select(ranked[item + j] > {own}, 1, 0)")
        w(f'stays[item] = T.Select(T.cast({before}, "int64") < {keep}, T.int64(1), T.int64(0))')
    return arguments.call("topk_ranks", w, "which tokens stay")


def _listed(node: Node, scores: Value, stays: Temporary) -> Call:
    w, arguments = Writer(), Arguments()
    arguments.pointer("stays", "int64", stays)
    _pointers(arguments, index=node.output)
    batch, length = (arguments.size(size) for size in scores.shape)
    keep = arguments.size(node.output.shape[1])
    with w.block(share(batch)):
        count = w.register("T.int64(0)", dtype="int64", lanes=1)
        with (
            w.block(f"for t in T.serial({length}):"),
            w.block(f"if stays[item * {length} + t] != 0 and {count} < {keep}:"),  # more do where scores are nan
        ):
            w(f"index[item * {keep} + {count}] = t")
            w(f"{count} = {count} + 1")
    return arguments.call("topk_list", w, "the tokens that stay, ascending")


def scatter_calls(node: Node) -> tuple[Call, ...]:
    """`scatter_tokens`: a copy, and the rows that are replaced."""
    x, index, source = node.inputs
    assert x is not None and index is not None and source is not None
    w, arguments = Writer(), Arguments()
    _pointers(arguments, x=x, y=node.output)
    with w.block(share(arguments.size(product(x.shape)))):
        w("y[item] = x[item]")
    copy = arguments.call("scatter_copy", w, "tokens as they are")
    w, arguments = Writer(), Arguments()
    _pointers(arguments, source=source, index=index, y=node.output)
    length, count, width = (arguments.size(n) for n in (x.shape[1], index.shape[1], product(x.shape[2:])))
    with w.block(share(times(arguments.size(x.shape[0]), count))):
        token = whole(w, f"item // {count} * {length} + {load(w, 'index', 'item', index.dtype, 1)}")
        with w.block(f"for c in T.serial({width}):"):
            w(f"y[{token} * {width} + c] = source[item * {width} + c]")
    return copy, arguments.call("scatter_rows", w, "tokens that are replaced")


def _pointers(arguments: Arguments, **values: Value | None) -> list[Value]:
    """Pointer parameters for operands and results, by their names."""
    found = []
    for name, value in values.items():
        assert value is not None
        arguments.pointer(name, STORAGE[value.dtype], Data(value))
        found.append(value)
    return found
