"""Ops that go along an axis in order: cumulative sums, and the k largest elements."""

from __future__ import annotations

from collections.abc import Callable

from irx.backends.regions.groups import Buffer, Materialize
from irx.backends.regions.lowered import Call, Refusal
from irx.backends.tvm.elementwise import store
from irx.backends.tvm.lanes import INTEGER, Lanes, kind
from irx.backends.tvm.regions.code import Code, op
from irx.backends.tvm.regions.moves import axis_of, number, tensor
from irx.backends.tvm.regions.places import Index, Place
from irx.ir.dims import product
from irx.ir.graph import Node, Value

MOST_SELECTED = 64  # elements that a row is searched for one after the other

Write = Callable[[Code, Node, Place, int, "dict[Value, Buffer]"], None]


def scan_call(code: Code, node: Node, name: str, stored: dict[Value, Buffer]) -> Call:
    """The kernel of a scan: threads share the lines along its axis."""
    x = tensor(node)
    axis = axis_of(node, len(x.shape))
    lines = (*x.shape[:axis], *x.shape[axis + 1 :])

    def line(i: Index) -> None:
        others = list(code.places.axes(Place(lines, linear=i)))
        others.insert(axis, Index("0"))
        SCANS[node.op.name](code, node, Place(x.shape, axes=tuple(others)), axis, stored)

    code.share(code.extent(product(lines)), line)
    return code.arguments.call(name, code.w, f"{name}: {node.op.name} of {list(x.shape)}")


def _moved(place: Place, axis: int, index: Index) -> Place:
    assert place.axes is not None
    return Place(place.shape, axes=(*place.axes[:axis], index, *place.axes[axis + 1 :]))


def _put(code: Code, place: Place, buffer: Buffer, text: str) -> None:
    store(code.w, code.pointer_to(buffer), code.places.linear(place).text, buffer.dtype, text, 1)


def _cumsum(code: Code, node: Node, place: Place, axis: int, stored: dict[Value, Buffer]) -> None:
    x, result = tensor(node), node.output
    v, name = Lanes(code.w, 1), kind(result.dtype)
    total = code.w.register(v.number(0, name), dtype=name, lanes=1)

    def step(index: Index) -> None:
        text = v.converted(code.at(x, _moved(place, axis, index)), kind(x.dtype), name)
        code.w(f"{total} = {total} + {text}")
        _put(code, _moved(place, axis, index), stored[result], total)

    code.loop(x.shape[axis], step)


def _topk(code: Code, node: Node, place: Place, axis: int, stored: dict[Value, Buffer]) -> None:
    """The next element is the largest of those behind the last one in the order of (value, index)."""
    x, k = tensor(node), number(node, "k")
    if not isinstance(k, int) or k > MOST_SELECTED:
        raise Refusal(f"topk of {k} elements")
    values, indices = node.outputs
    name = kind(x.dtype)
    last, last_index = (code.w.register(dtype=d, lanes=1) for d in (name, INTEGER))
    best, best_index = (code.w.register(dtype=d, lanes=1) for d in (name, INTEGER))

    def search(index: Index) -> None:
        text = Lanes(code.w, 1).let(code.at(x, _moved(place, axis, index)), name)
        here = f'T.cast({index.text}, "int64")'
        behind = f"T.Or({text} < {last}, T.And({text} == {last}, {here} > {last_index}))"
        allowed = f"T.Or({last_index} < T.int64(0), {behind})"
        better = f"T.Or({best_index} < T.int64(0), {text} > {best})"
        with code.w.block(f"if T.And({allowed}, {better}):"):
            code.w(f"{best} = {text}")
            code.w(f"{best_index} = {here}")

    def select(rank: Index) -> None:
        code.w(f"{best_index} = T.int64(-1)")
        code.loop(x.shape[axis], search)
        code.w(f"{last} = {best}")
        code.w(f"{last_index} = {best_index}")
        for value, text in ((values, best), (indices, best_index)):
            spot = _moved(Place(value.shape, axes=place.axes), axis, rank)
            if value in stored:
                _put(code, spot, stored[value], text)

    code.w(f"{last_index} = T.int64(-1)")
    code.loop(k, select)


SCANS: dict[str, Write] = {"cumsum": _cumsum, "topk": _topk}


@op(*SCANS)
def _alone(code: Code, node: Node, value: Value, place: Place) -> str:
    raise Materialize(node)
