"""Shape and lookup ops: which elements of which operand elements are."""

from __future__ import annotations

from dataclasses import replace

from irx.backends.regions.lowered import Refusal
from irx.backends.triton.elementwise import INTEGER, converted, kind, number
from irx.backends.triton.regions.code import Code, op
from irx.backends.triton.regions.places import ZERO, Index, Place
from irx.ir.dims import Dim, SymDim, maximum, minimum
from irx.ir.graph import Literal, Node, Value


def tensor(node: Node, index: int = 0) -> Value:
    """An operand that is there."""
    value = node.inputs[index]
    assert value is not None
    return value


def size_of(node: Node, name: str) -> Dim:
    """An attribute that is a size."""
    value = node.attr(name)
    assert isinstance(value, int | SymDim)
    return value


def axis_of(node: Node, rank: int) -> int:
    """The attribute `axis`, counted from the front."""
    axis = node.attr("axis")
    assert isinstance(axis, int)
    return axis % rank


def with_axis(code: Code, place: Place, shape: tuple[Dim, ...], axis: int, index: Index) -> Place:
    """The place with another index along one axis, in a tensor of `shape` that differs in that axis alone."""
    if axis == len(shape) - 1 and place.axes is None:
        return Place(shape, split=(code.places.split(place)[0], index))
    axes = code.places.axes(place)
    return Place(shape, axes=(*axes[:axis], index, *axes[axis + 1 :]))


def index_along(code: Code, place: Place, axis: int) -> Index:
    """The position along an axis."""
    last = axis == len(place.shape) - 1
    return code.places.split(place)[1] if last and place.axes is None else code.places.axes(place)[axis]


def sized(code: Code, dim: Dim) -> Index:
    """A size as an index."""
    return ZERO if dim == 0 else Index(code.size(dim))


@op("reshape")
def _reshape(code: Code, node: Node, value: Value, place: Place) -> str:
    x = tensor(node)
    return code.at(x, code.places.reshaped(place, x.shape))


@op("expand")
def _expand(code: Code, node: Node, value: Value, place: Place) -> str:
    x = tensor(node)
    return code.at(x, code.places.broadcast(place, x.shape))


@op("permute")
def _permute(code: Code, node: Node, value: Value, place: Place) -> str:
    x, order, axes = tensor(node), node.attr("order"), code.places.axes(place)
    assert isinstance(order, tuple)
    found = [ZERO] * len(axes)
    for index, source in zip(axes, order, strict=True):
        assert isinstance(source, int)
        found[source % len(axes)] = index
    return code.at(x, Place(x.shape, axes=tuple(found)))


@op("slice")
def _slice(code: Code, node: Node, value: Value, place: Place) -> str:
    x = tensor(node)
    axis = axis_of(node, len(x.shape))
    start = sized(code, _bound(size_of(node, "start"), x.shape[axis]))
    index = index_along(code, place, axis).times(code.size(size_of(node, "step"))).plus(start)
    return code.at(x, with_axis(code, place, x.shape, axis, index))


def _bound(bound: Dim, size: Dim) -> Dim:
    if isinstance(bound, SymDim) or bound >= 0:
        return bound if bound == 0 else minimum(bound, size)
    return maximum(size + bound, 0)


@op("flip")
def _flip(code: Code, node: Node, value: Value, place: Place) -> str:
    x, axes, flipped = tensor(node), list(code.places.axes(place)), node.attr("axes")
    assert isinstance(flipped, tuple)
    for axis in (a % len(axes) for a in flipped if isinstance(a, int)):
        axes[axis] = axes[axis].joined(f"{code.size(x.shape[axis] - 1)} - {axes[axis].grouped}")
    return code.at(x, Place(x.shape, axes=tuple(axes)))


@op("concat")
def _concat(code: Code, node: Node, value: Value, place: Place) -> str:
    """Every operand is read where its elements are, and they are put together."""
    axis = axis_of(node, len(value.shape))
    index, result = index_along(code, place, axis), ""
    starts: list[Dim] = [0]
    for at in range(len(node.inputs)):
        starts.append(starts[-1] + tensor(node, at).shape[axis])
    for at in reversed(range(len(node.inputs))):
        x = tensor(node, at)
        moved = _less(index, code.size(starts[at])) if starts[at] != 0 else index
        stop = code.size(starts[at + 1])
        inside = f"({index.text} >= {code.size(starts[at])}) & ({index.text} < {stop})"
        text = _within(code, x, place, axis, moved, inside)
        text = converted(text, kind(x.dtype), kind(value.dtype))
        before = f"{index.text} < {stop}"
        result = text if not result else code.let(f"tl.where({before}, {text}, {result})")
    return result


def _less(index: Index, size: str) -> Index:
    return index.joined(f"{index.text} - {size}")


def _within(code: Code, x: Value, place: Place, axis: int, index: Index, inside: str) -> str:
    """x at a place of a larger tensor, where a condition holds; anything elsewhere, but nothing is read there."""
    with code.level(index.level):
        masked = Index(index.text, index.level, index.block, index.masks | {code.let(inside, "m")})
    return code.at(x, with_axis(code, place, x.shape, axis, masked))


@op("pad")
def _pad(code: Code, node: Node, value: Value, place: Place) -> str:
    x, before, filler = tensor(node), node.attr("before"), node.attr("value")
    assert isinstance(before, tuple) and isinstance(filler, int | float)
    axes, conditions = list(code.places.axes(place)), []
    for axis, (amount, size) in enumerate(zip(before, x.shape, strict=True)):
        assert isinstance(amount, int | SymDim)
        if amount == 0 and size == value.shape[axis]:
            continue
        index = axes[axis]
        inside = f"({index.text} >= {code.size(amount)}) & ({index.text} < {code.size(amount + size)})"
        with code.level(index.level):
            mask = code.let(inside, "m")
        conditions.append(mask)
        axes[axis] = Index(f"{index.text} - {code.size(amount)}", index.level, index.block, index.masks | {mask})
    text = code.at(x, Place(x.shape, axes=tuple(axes)))
    if not conditions:
        return text
    return code.let(f"tl.where({' & '.join(conditions)}, {text}, {number(filler, kind(value.dtype))})")


@op("arange")
def _arange(code: Code, node: Node, value: Value, place: Place) -> str:
    index, start = code.places.linear(place), code.size(size_of(node, "start"))
    count = f"tl.full((), {start}, tl.int64) + {index.grouped} * {code.size(size_of(node, 'step'))}"
    return code.let(converted(code.let(count), INTEGER, kind(value.dtype)))


@op("full")
def _full(code: Code, node: Node, value: Value, place: Place) -> str:
    filler = node.attr("value")
    assert isinstance(filler, int | float)
    return code.let(f"tl.full((), {number(filler, kind(value.dtype))}, {kind(value.dtype)})")


# --- lookups --------------------------------------------------------------------------------------------------------


def looked_up(code: Code, index: Value, place: Place, size: Dim) -> Index:
    """Elements of an index tensor as indices along an axis of `size`; negative ones count from the end.

    What lies outside is moved to the nearest end, so that no memory is read that is not there.
    """
    raw, extent = code.at(index, place), code.size(size)
    with code.level(place.level):
        counted = code.let(f"tl.where({raw} < 0, {raw} + {extent}, {raw})", "row")
        above = code.let(f"tl.where({counted} < 0, 0, {counted})", "row")
        bounded = code.let(f"tl.where({above} >= {extent}, {extent} - 1, {above})", "row")
    masks = frozenset[str]().union(*(part.masks for part in place.parts))
    return Index(bounded, place.level, place.block, masks)


@op("embedding")
def _embedding(code: Code, node: Node, value: Value, place: Place) -> str:
    ids, table = tensor(node), tensor(node, 1)
    row, column = code.places.split(place)
    found = looked_up(code, ids, Place(ids.shape, linear=row), table.shape[0])
    return code.at(table, Place(table.shape, split=(found, column)))


@op("take")
def _take(code: Code, node: Node, value: Value, place: Place) -> str:
    x, index = tensor(node), tensor(node, 1)
    axis, rank = axis_of(node, len(x.shape)), len(index.shape)
    axes = code.places.axes(place)
    found = looked_up(code, index, Place(index.shape, axes=axes[axis : axis + rank]), x.shape[axis])
    return code.at(x, Place(x.shape, axes=(*axes[:axis], found, *axes[axis + rank :])))


@op("gather")
def _gather(code: Code, node: Node, value: Value, place: Place) -> str:
    x, index = tensor(node), tensor(node, 1)
    axis = axis_of(node, len(x.shape))
    found = looked_up(code, index, place, x.shape[axis])
    axes = code.places.axes(place)
    return code.at(x, Place(x.shape, axes=(*axes[:axis], found, *axes[axis + 1 :])))


@op("gather_tokens")
def _gather_tokens(code: Code, node: Node, value: Value, place: Place) -> str:
    x, index = tensor(node), tensor(node, 1)
    axes = code.places.axes(place)
    found = looked_up(code, index, Place(index.shape, axes=axes[:2]), x.shape[1])
    return code.at(x, Place(x.shape, axes=(axes[0], found, *axes[2:])))


@op("scatter_slice")
def _scatter_slice(code: Code, node: Node, value: Value, place: Place) -> str:
    x, source = tensor(node), tensor(node, 1)
    if isinstance(source, Literal):
        raise Refusal("a number that is written into a slice")
    axis, step = axis_of(node, len(x.shape)), size_of(node, "step")
    size, stop = x.shape[axis], node.attr("stop")
    start = _bound(size_of(node, "start"), size)
    end = size if stop is None else _bound(size_of(node, "stop"), size)
    index = index_along(code, place, axis)
    moved = _less(index, code.size(start))
    inside = f"({index.text} >= {code.size(start)}) & ({index.text} < {code.size(end)})"
    inside += f" & ({moved.grouped} % {code.size(step)} == 0)" if step != 1 else ""
    shape = (*x.shape[:axis], (end - start + (step - 1)) // step, *x.shape[axis + 1 :])
    with code.level(index.level):
        mask = code.let(inside, "m")
    inner = Index(f"{moved.grouped} // {code.size(step)}", index.level, index.block, index.masks | {mask})
    target = code.places.broadcast(with_axis(code, place, shape, axis, inner), source.shape)
    text = converted(code.at(source, target), kind(source.dtype), kind(value.dtype))
    return code.let(f"tl.where({mask}, {text}, {code.at(x, place)})")


@op("relative_bias")
def _relative_bias(code: Code, node: Node, value: Value, place: Place) -> str:
    """The table's entry for how far a key lies behind its query."""
    positions, table = tensor(node), tensor(node, 1)
    batch, head, row, key = code.places.axes(place)
    query = code.at(positions, Place(positions.shape, axes=(batch, row)))
    last = code.size(table.shape[1] - 1)
    distance = code.let(f"{query} - {key.grouped}", "far")
    above = code.let(f"tl.where({distance} < 0, 0, {distance})", "far")
    found = Index(code.let(f"tl.where({above} > {last}, {last}, {above})", "far"), place.level, place.block)
    masks = frozenset[str]().union(*(part.masks for part in place.parts))
    return code.at(table, Place(table.shape, axes=(head, replace(found, masks=masks))))
