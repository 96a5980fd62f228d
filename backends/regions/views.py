"""Views: where the elements of a reshaped, permuted or sliced tensor lie in the buffer of what it is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from irx.ir.dims import Dim
from irx.ir.graph import Node, Value


@dataclass(frozen=True)
class View:
    """Element [i, j, ...] is element offset + i * strides[0] + j * strides[1] + ... of the buffer of `base`."""

    base: Value
    shape: tuple[Dim, ...]
    strides: tuple[Dim, ...]
    offset: Dim = 0


def whole(value: Value) -> View:
    """All of a contiguous tensor."""
    return View(value, tuple(value.shape), row_major(value.shape))


def row_major(shape: Sequence[Dim]) -> tuple[Dim, ...]:
    """The strides of a contiguous tensor."""
    strides: list[Dim] = []
    step: Dim = 1
    for size in reversed(shape):
        strides.append(step)
        step = step * size
    return tuple(reversed(strides))


def viewed(view: View, node: Node) -> View | None:
    """What `node` (reshape, permute, slice, expand) makes of its operand's view; None where that is no view."""
    if node.op.name == "permute":
        order = [axis % len(view.shape) for axis in _integers(node.attr("order"))]
        return View(view.base, tuple(view.shape[i] for i in order), tuple(view.strides[i] for i in order), view.offset)
    shape = tuple(node.output.shape)
    if node.op.name == "slice":
        return _sliced(view, node, shape)
    if node.op.name == "expand":
        return _expanded(view, shape)
    if node.op.name == "reshape":
        strides = _reshaped(view, shape)
        return None if strides is None else View(view.base, shape, strides, view.offset)
    return None


def _integers(attr: object) -> list[int]:
    assert isinstance(attr, list | tuple)
    return [int(x) for x in attr]


def _sliced(view: View, node: Node, shape: tuple[Dim, ...]) -> View | None:
    axis, start, step = node.attr("axis"), node.attr("start"), node.attr("step")
    if not (isinstance(axis, int) and isinstance(start, int) and isinstance(step, int)) or step < 1:
        return None
    axis = axis % len(view.shape)
    size = view.shape[axis]
    if start < 0:
        if not isinstance(size, int):
            return None
        start = max(0, start + size)
    strides = tuple(s * step if i == axis else s for i, s in enumerate(view.strides))
    return View(view.base, shape, strides, view.offset + view.strides[axis] * start)


def _expanded(view: View, shape: tuple[Dim, ...]) -> View:
    added = len(shape) - len(view.shape)
    strides: list[Dim] = [0] * added
    for size, stride, wanted in zip(view.shape, view.strides, shape[added:], strict=True):
        strides.append(stride if size == wanted else 0)
    return View(view.base, shape, tuple(strides), view.offset)


def _reshaped(view: View, shape: tuple[Dim, ...]) -> tuple[Dim, ...] | None:
    """Strides of the view in another shape: axes may be split, and joined where one steps over the next."""
    runs = _runs(view)
    strides: list[Dim] = []
    left = [(size, stride) for size, stride in runs if size != 1]
    for size in reversed(shape):
        if size == 1:
            strides.append(0)
            continue
        if not left:
            return None
        total, stride = left.pop()
        strides.append(stride)
        if total == size:
            continue
        rest = _quotient(total, size)
        if rest is None:
            return None
        left.append((rest, stride * size))
    return tuple(reversed(strides)) if not left else None


def _runs(view: View) -> list[tuple[Dim, Dim]]:
    """Axes as (size, stride), neighbours joined where they can be."""
    runs: list[tuple[Dim, Dim]] = []
    for size, stride in zip(view.shape, view.strides, strict=True):
        if size == 1:
            continue
        if runs and runs[-1][1] == stride * size:
            runs[-1] = (runs[-1][0] * size, stride)
        else:
            runs.append((size, stride))
    return runs


def _quotient(total: Dim, size: Dim) -> Dim | None:
    """total / size where that is whole for certain."""
    quotient = total // size
    return quotient if quotient * size == total else None
