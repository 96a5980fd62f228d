"""Where an axis of a result comes from: which ops treat the rows along it independently of each other.

`operand_axes(node, axis)` answers for one node: for every operand the axis along which row i of the result reads only
row i of the operand, or None where the operand is the same for all rows. The whole answer is None where rows mix, or
where nothing is known. With it a selection of rows moves from a result to the operands, and a graph is shown to treat
tokens independently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

from irx.ir.dims import Dim, product
from irx.ir.graph import Literal, Node, Value
from irx.ir.opdef import Attr

Axes: TypeAlias = "tuple[int | None, ...] | None"
_Rule: TypeAlias = Callable[[Node, int], Axes]

_RULES: dict[str, _Rule] = {}


def operand_axes(node: Node, axis: int) -> Axes:
    """See above; `axis` counts from 0 in the node's first result."""
    if node.op.elementwise or node.op.name == "expand":
        return _broadcast(node, axis)
    rule = _RULES.get(node.op.name)
    return rule(node, axis) if rule else None


def resized(node: Node, axis: int, size: Dim) -> dict[str, Attr]:
    """The node's attributes for a result that has `size` rows along `axis` instead, operands being resized alike."""
    attrs = dict(node.attrs)
    if node.op.name in ("reshape", "expand", "full"):
        shape = list(cast("tuple[Dim, ...]", attrs["shape"]))
        shape[axis] = size
        attrs["shape"] = tuple(shape)
    if node.op.name == "slice" and attrs["axis"] == axis:
        attrs |= {"start": 0, "stop": size}
    return attrs


def preserved_axis(before: Sequence[Dim], after: Sequence[Dim], axis: int) -> int | None:
    """The axis of shape `before` that a reshape to `after` keeps as `axis`: same size, as many elements in front."""
    front, size = product(after[:axis]), after[axis]
    found: Dim = 1
    for place, dim in enumerate(before):
        if found == front and dim == size:
            return place
        found = found * dim
    return None


def _rule(*names: str) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        _RULES.update((name, rule) for name in names)
        return rule

    return register


def _rank(value: Value | None) -> int:
    return 0 if value is None or isinstance(value, Literal) else len(value.shape)


def _others(node: Node, axis: int | None) -> tuple[int | None, ...]:
    """`axis` for the first operand, nothing for the others."""
    return (axis, *[None] * (len(node.inputs) - 1))


def _broadcast(node: Node, axis: int) -> Axes:
    shape = node.output.shape
    return tuple(_aligned(value, shape, axis) for value in node.inputs)


def _aligned(value: Value | None, shape: Sequence[Dim], axis: int) -> int | None:
    """The axis of an operand that broadcasting aligns with `axis` of the result, None where it has size 1 there."""
    if value is None:
        return None
    place = axis - (len(shape) - _rank(value))
    if place < 0 or (value.shape[place] == 1 and shape[axis] != 1):
        return None
    return place


@_rule("softmax", "log_softmax", "cumsum", "topk", "argmax")
def _along(node: Node, axis: int) -> Axes:
    rank = _rank(node.inputs[0])
    done = cast(int, node.attrs["axis"]) % rank
    place = axis + (1 if len(node.outputs[0].shape) < rank and axis >= done else 0)
    return None if place == done else (place,)


@_rule("sum", "mean", "amax", "amin", "any", "all", "logsumexp")
def _reduction(node: Node, axis: int) -> Axes:
    rank = _rank(node.inputs[0])
    reduced = {a % rank for a in cast("tuple[int, ...]", node.attrs["axes"])}
    kept = [a for a in range(rank) if a not in reduced]
    place = axis if node.attr("keepdims") else kept[axis]
    return None if place in reduced else (place,)


@_rule("rms_norm", "layer_norm", "linear", "round_activations", "round_tokens")
def _last_axis_mixes(node: Node, axis: int) -> Axes:
    return None if axis == len(node.output.shape) - 1 else _others(node, axis)


@_rule("matmul")
def _matmul(node: Node, axis: int) -> Axes:
    shape = node.output.shape
    rank = len(shape)
    a, b = node.inputs
    if axis == rank - 2:
        return _rank(a) - 2, None
    if axis == rank - 1:
        return None, _rank(b) - 1
    return _aligned(a, shape, axis), _aligned(b, shape, axis)


@_rule("embedding")
def _embedding(node: Node, axis: int) -> Axes:
    return _others(node, axis) if axis < _rank(node.inputs[0]) else (None, axis - _rank(node.inputs[0]) + 1)


@_rule("reshape")
def _reshape(node: Node, axis: int) -> Axes:
    (x,) = node.inputs
    place = preserved_axis(x.shape, node.output.shape, axis) if x is not None else None
    return None if place is None else (place,)


@_rule("permute")
def _permute(node: Node, axis: int) -> Axes:
    return (cast("tuple[int, ...]", node.attrs["order"])[axis] % len(node.output.shape),)


@_rule("slice")
def _slice(node: Node, axis: int) -> Axes:
    (x,) = node.inputs
    sliced = cast(int, node.attrs["axis"]) % len(node.output.shape)
    whole = x is not None and node.attr("step") == 1 and x.shape[axis] == node.output.shape[axis]
    return (axis,) if axis != sliced or whole else None


@_rule("full")
def _full(node: Node, axis: int) -> Axes:
    return ()


@_rule("flip")
def _flip(node: Node, axis: int) -> Axes:
    rank = len(node.output.shape)
    return None if axis in {a % rank for a in cast("tuple[int, ...]", node.attrs["axes"])} else (axis,)


@_rule("concat")
def _concat(node: Node, axis: int) -> Axes:
    done = cast(int, node.attrs["axis"]) % len(node.output.shape)
    return None if axis == done else (axis,) * len(node.inputs)


@_rule("pad")
def _pad(node: Node, axis: int) -> Axes:
    before, after = (cast("tuple[Dim, ...]", node.attrs[side]) for side in ("before", "after"))
    return (axis,) if before[axis] == 0 and after[axis] == 0 else None


@_rule("take")
def _take(node: Node, axis: int) -> Axes:
    x, index = node.inputs
    at, width = cast(int, node.attrs["axis"]) % _rank(x), _rank(index)
    if at <= axis < at + width:
        return None, axis - at
    return (axis if axis < at else axis - width + 1), None


@_rule("gather", "scatter")
def _gather(node: Node, axis: int) -> Axes:
    x, index = node.inputs[0], node.inputs[1]
    assert x is not None
    assert index is not None
    if axis == cast(int, node.attrs["axis"]) % _rank(x):
        return (None, axis) if node.op.name == "gather" else None
    if x.shape[axis] != index.shape[axis]:
        return None
    return tuple(axis if _rank(v) else None for v in node.inputs)


@_rule("scatter_slice")
def _scatter_slice(node: Node, axis: int) -> Axes:
    if axis == cast(int, node.attrs["axis"]) % len(node.output.shape):
        return None
    return axis, _aligned(node.inputs[1], node.output.shape, axis)


@_rule("rope")
def _rope(node: Node, axis: int) -> Axes:
    _, positions, _ = node.inputs
    assert positions is not None
    if axis == 3:
        return None
    return axis, (1 if axis == 2 else 0 if axis == 0 and positions.shape[0] != 1 else None), None


@_rule("kv_attention")
def _kv_attention(node: Node, axis: int) -> Axes:
    """Rows of queries with their positions; the state is the same for all."""
    return (2, None, 1, *[None] * (len(node.inputs) - 3)) if axis == 2 else None


@_rule("attention")
def _attention(node: Node, axis: int) -> Axes:
    """Query rows are independent where neither `causal` nor `window` reads a row's number."""
    if axis != 2 or node.attr("causal") or node.attr("window") is not None:
        return None
    shape = (*node.output.shape[:3], 2)  # the last axis of masks and biases is that of keys: any size but 1 does
    extras = tuple(_aligned(v, shape, 2) if v is not None else None for v in node.inputs[3:5])
    return (2, None, None, *extras, *[None] * max(0, len(node.inputs) - 5))[: len(node.inputs)]


@_rule("moe")
def _moe(node: Node, axis: int) -> Axes:
    return (0, 0, 0, *[None] * (len(node.inputs) - 3)) if axis == 0 else None


@_rule("relative_bias")
def _relative_bias(node: Node, axis: int) -> Axes:
    return {0: (0, None), 1: (None, 0), 2: (1, None)}.get(axis)


@_rule("gather_tokens")
def _gather_tokens(node: Node, axis: int) -> Axes:
    return (None, 1) if axis == 1 else (0, 0) if axis == 0 else (axis, None)
