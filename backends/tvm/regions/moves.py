"""Shape and lookup ops: which element of which operand an element is."""

from __future__ import annotations

from dataclasses import replace

from irx.backends.tvm.lanes import INTEGER, Lanes, kind
from irx.backends.tvm.regions.code import Code, op
from irx.backends.tvm.regions.places import ZERO, Index, Place, Unaligned
from irx.backends.tvm.writer import LANES
from irx.ir.dims import Dim, SymDim, maximum, minimum
from irx.ir.graph import Literal, Node, Value

UNKNOWN = frozenset(["?"])  # the loops of an index that was read: no statement of it may move


def tensor(node: Node, index: int = 0) -> Value:
    """An operand that is there."""
    value = node.inputs[index]
    assert value is not None
    return value


def number(node: Node, name: str) -> Dim:
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


@op("reshape")
def _reshape(code: Code, node: Node, value: Value, place: Place) -> str:
    x = tensor(node)
    return code.spread(x, code.places.reshaped(place, x.shape), place.lanes)


@op("expand")
def _expand(code: Code, node: Node, value: Value, place: Place) -> str:
    x = tensor(node)
    return code.spread(x, code.places.broadcast(place, x.shape), place.lanes)


@op("permute")
def _permute(code: Code, node: Node, value: Value, place: Place) -> str:
    x, order, axes = tensor(node), node.attr("order"), code.places.axes(place)
    assert isinstance(order, tuple)
    found = [ZERO] * len(axes)
    for index, source in zip(axes, order, strict=True):
        assert isinstance(source, int)
        found[source % len(axes)] = index
    return code.spread(x, Place(x.shape, axes=tuple(found)), place.lanes)


@op("slice")
def _slice(code: Code, node: Node, value: Value, place: Place) -> str:
    x = tensor(node)
    axis, step = axis_of(node, len(x.shape)), number(node, "step")
    assert isinstance(step, int)
    start = code.places.index(_bound(number(node, "start"), x.shape[axis]))
    index = index_along(code, place, axis).times(step).plus(start)
    return code.spread(x, with_axis(code, place, x.shape, axis, index), place.lanes)


def _bound(bound: Dim, size: Dim) -> Dim:
    if isinstance(bound, SymDim) or bound >= 0:
        return bound if bound == 0 else minimum(bound, size)
    return maximum(size + bound, 0)


@op("flip")
def _flip(code: Code, node: Node, value: Value, place: Place) -> str:
    x, axes, flipped = tensor(node), list(code.places.axes(place)), node.attr("axes")
    assert isinstance(flipped, tuple)
    for axis in (a % len(axes) for a in flipped if isinstance(a, int)):
        index = axes[axis]
        if index.step:
            raise Unaligned
        last = code.places.index(x.shape[axis] - 1)
        axes[axis] = Index(f"{last.text} - {index.grouped}", 0, 1, index.loops)
    return code.spread(x, Place(x.shape, axes=tuple(axes)), place.lanes)


@op("concat")
def _concat(code: Code, node: Node, value: Value, place: Place) -> str:
    axis = axis_of(node, len(value.shape))
    return _part(code, node, place, axis, index_along(code, place, axis), 0, 0)


def _part(code: Code, node: Node, place: Place, axis: int, index: Index, at: int, start: Dim) -> str:
    """The element of operand `at`, which begins at `start`, or of a later one."""
    x = tensor(node, at)
    stop = start + x.shape[axis]

    def inside() -> str:
        moved = _less(code, index, start)
        text = code.spread(x, with_axis(code, place, x.shape, axis, moved), place.lanes)
        return _as(code, text, x, node.output, place.lanes)

    if at == len(node.inputs) - 1:
        return inside()
    condition = _before(code, index, stop)
    return code.choose(
        condition,
        inside,
        lambda: _part(code, node, place, axis, index, at + 1, stop),
        kind(node.output.dtype),
        place.lanes,
    )


def _as(code: Code, text: str, value: Value, result: Value, lanes: int) -> str:
    return Lanes(code.w, lanes).converted(text, kind(value.dtype), kind(result.dtype))


def _less(code: Code, index: Index, start: Dim) -> Index:
    if start == 0:
        return index
    multiple = abs(start) if isinstance(start, int) else 1
    moved = index.plus(Index("0", 0, multiple)) if isinstance(start, int) else replace(index, multiple=1)
    return replace(moved, text=f"{index.text} - {code.places.index(start).grouped}")


def _before(code: Code, index: Index, bound: Dim) -> str:
    """`index < bound`, the same for all lanes. Raises Unaligned where they may differ."""
    known = isinstance(bound, int) and bound % LANES == 0 and index.multiple % LANES == 0
    if index.step and not (index.step == 1 and known):
        raise Unaligned
    return f"{index.text} < {code.places.index(bound).grouped}"


@op("pad")
def _pad(code: Code, node: Node, value: Value, place: Place) -> str:
    x, before, filler = tensor(node), node.attr("before"), node.attr("value")
    assert isinstance(before, tuple)
    axes, conditions = list(code.places.axes(place)), []
    for axis, (amount, size) in enumerate(zip(before, x.shape, strict=True)):
        assert isinstance(amount, int | SymDim)
        index = axes[axis]
        if amount != 0:
            _before(code, index, amount)  # refuses lanes on both sides
            conditions.append(f"{index.text} >= {code.places.index(amount).grouped}")
        if amount + size != value.shape[axis]:
            conditions.append(_before(code, index, amount + size))
        axes[axis] = _less(code, index, amount)
    moved = Place(x.shape, axes=tuple(axes))
    assert isinstance(filler, int | float)
    outside = Lanes(code.w, place.lanes).number(filler, kind(value.dtype))
    if not conditions:
        return code.spread(x, moved, place.lanes)
    return code.choose(
        _all(conditions),
        lambda: code.spread(x, moved, place.lanes),
        lambda: outside,
        kind(value.dtype),
        place.lanes,
    )


def _all(conditions: list[str]) -> str:
    total = conditions[0]
    for condition in conditions[1:]:
        total = f"T.And({total}, {condition})"
    return total


@op("scatter_slice")
def _scatter_slice(code: Code, node: Node, value: Value, place: Place) -> str:
    x, source = tensor(node), tensor(node, 1)
    axis, step = axis_of(node, len(x.shape)), number(node, "step")
    size, stop = x.shape[axis], node.attr("stop")
    start = _bound(number(node, "start"), size)
    end = size if stop is None else _bound(number(node, "stop"), size)
    index = index_along(code, place, axis)
    if index.step:
        raise Unaligned
    moved = _less(code, index, start)
    conditions = [f"{index.text} >= {code.places.index(start).grouped}", _before(code, index, end)]
    conditions += [f"T.truncmod(T.cast({moved.text}, 'int64'), T.int64({step})) == 0"] if step != 1 else []
    inner = Index(f"T.truncdiv(T.cast({moved.text}, 'int64'), T.int64({step}))", 0, 1, index.loops)

    def replaced() -> str:
        shape = (*x.shape[:axis], number_of_steps(start, end, step), *x.shape[axis + 1 :])
        target = with_axis(code, place, shape, axis, inner)
        text = _scalar(code, source, target)
        return _as(code, text, source, value, 1)

    return code.choose(_all(conditions), replaced, lambda: code.at(x, replace(place)), kind(value.dtype), 1)


def number_of_steps(start: Dim, stop: Dim, step: Dim) -> Dim:
    """How many positions a slice has, where there is at least one."""
    return (stop - start + (step - 1)) // step


def _scalar(code: Code, value: Value, place: Place) -> str:
    """An element of an operand that may be a literal."""
    if isinstance(value, Literal):
        assert isinstance(value.value, int | float)
        return Lanes(code.w, 1).number(value.value, kind(value.dtype))
    return code.at(value, code.places.broadcast(place, value.shape))


@op("arange")
def _arange(code: Code, node: Node, value: Value, place: Place) -> str:
    index, step = code.places.linear(place), number(node, "step")
    start = code.places.index(number(node, "start"))
    v = Lanes(code.w, place.lanes)
    base = f'T.cast({index.text}, "int64") * {step} + {start.grouped}'
    lanes = base if place.lanes == 1 else f"T.ramp(T.int64(0) + {base}, T.int64({step}), {LANES})"
    return v.let(v.converted(v.let(lanes, INTEGER), INTEGER, kind(value.dtype)), kind(value.dtype))


@op("full")
def _full(code: Code, node: Node, value: Value, place: Place) -> str:
    filler = node.attr("value")
    assert isinstance(filler, int | float)
    return Lanes(code.w, place.lanes).number(filler, kind(value.dtype))


# --- lookups --------------------------------------------------------------------------------------------------------


def looked_up(code: Code, index: Value, place: Place, size: Dim) -> Index:
    """The element of an index tensor as an index along an axis of `size`; negative ones count from the end.

    What lies outside is moved to the nearest end, so that no memory is read that is not there. Raises Unaligned where
    lanes have indices of their own.
    """
    if place.lanes > 1:
        raise Unaligned
    raw, extent = code.at(index, place), code.extent(size)
    counted = code.w.register(f"T.Select({raw} < T.int64(0), {raw} + {extent}, {raw})", dtype=INTEGER, lanes=1)
    above = f"T.Select({counted} < T.int64(0), T.int64(0), {counted})"
    bounded = code.w.register(f"T.min({above}, {extent} - T.int64(1))", dtype=INTEGER, lanes=1)
    return Index(bounded, 0, 1, place.loops | UNKNOWN)


@op("embedding")
def _embedding(code: Code, node: Node, value: Value, place: Place) -> str:
    ids, table = tensor(node), tensor(node, 1)
    row, column = code.places.split(place)
    found = looked_up(code, ids, Place(ids.shape, linear=row), table.shape[0])
    return code.spread(table, Place(table.shape, split=(found, column)), place.lanes)


@op("take")
def _take(code: Code, node: Node, value: Value, place: Place) -> str:
    x, index = tensor(node), tensor(node, 1)
    axis, rank = axis_of(node, len(x.shape)), len(index.shape)
    axes = code.places.axes(place)
    found = looked_up(code, index, Place(index.shape, axes=axes[axis : axis + rank]), x.shape[axis])
    return code.spread(x, Place(x.shape, axes=(*axes[:axis], found, *axes[axis + rank :])), place.lanes)


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
    return code.spread(x, Place(x.shape, axes=(axes[0], found, *axes[2:])), place.lanes)


@op("relative_bias")
def _relative_bias(code: Code, node: Node, value: Value, place: Place) -> str:
    positions, table = tensor(node), tensor(node, 1)
    batch, head, row, key = code.places.axes(place)
    if key.step:
        raise Unaligned
    query = code.at(positions, Place(positions.shape, axes=(batch, row)))
    last = code.extent(table.shape[1] - 1)
    distance = code.w.register(f"{query} - {key.grouped}", dtype=INTEGER, lanes=1)
    above = f"T.Select({distance} < T.int64(0), T.int64(0), {distance})"
    found = Index(code.w.register(f"T.min({above}, {last})", dtype=INTEGER, lanes=1), 0, 1, place.loops | UNKNOWN)
    return code.at(table, Place(table.shape, axes=(head, found)))
