"""Ops that go along an axis in order: cumulative sums, and the k largest elements. A program for each line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from irx.backends.regions.groups import LINEWISE, Materialize
from irx.backends.regions.lowered import Call, Refusal
from irx.backends.triton.elementwise import FLOAT, converted, kind, number
from irx.backends.triton.regions.code import Code, op, power_of_two
from irx.backends.triton.regions.moves import axis_of, size_of, tensor
from irx.backends.triton.regions.places import Index, Place
from irx.backends.triton.writer import narrowed
from irx.ir.dims import product
from irx.ir.graph import Node, Value

if TYPE_CHECKING:
    from irx.backends.triton.regions.kernels import Group

LONGEST = 1 << 16  # elements of a line
MOST_SELECTED = 64


def lines(group: Group, node: Node) -> Call:
    """The kernel of a node of these ops. Raises Refusal for lines that are too long or of unknown length."""
    x = tensor(node)
    axis = axis_of(node, len(x.shape))
    length = x.shape[axis]
    if not isinstance(length, int) or length > LONGEST:
        raise Refusal(f"{node.op.name} along {length} elements")
    code = group.code(1)
    others = (*x.shape[:axis], *x.shape[axis + 1 :])
    line = Index(code.let("tl.program_id(0).to(tl.int64)", "line"))
    axes = code.places.axes(Place(others, linear=line))
    along = code.row(length)
    text = code.at(x, Place(x.shape, axes=(*axes[:axis], along, *axes[axis:])))
    (_cumsum if node.op.name == "cumsum" else _topk)(group, code, node, text, axis, axes, along)
    return group.finish(code, code.size(product(others)), power_of_two(length))


def _put(group: Group, code: Code, value: Value, place: Place, text: str) -> None:
    if value not in group.stored:
        return
    buffer = group.stored[value]
    mask = f", mask={place.mask}" if place.mask else ""
    target = f"{code.pointer(buffer)} + {code.places.linear(place).grouped}"
    code(f"tl.store({target}, {narrowed(text, buffer.dtype)}{mask})")


def _cumsum(group: Group, code: Code, node: Node, text: str, axis: int, axes: tuple[Index, ...], along: Index) -> None:
    value = node.output
    summed = code.let(f"tl.cumsum({converted(text, kind(tensor(node).dtype), kind(value.dtype))}, 0)")
    _put(group, code, value, Place(value.shape, axes=(*axes[:axis], along, *axes[axis:])), summed)


def _topk(group: Group, code: Code, node: Node, text: str, axis: int, axes: tuple[Index, ...], along: Index) -> None:
    """The largest is taken k times, the first of equal ones first."""
    k, of = size_of(node, "k"), kind(tensor(node).dtype)
    if not isinstance(k, int) or k > MOST_SELECTED or of != FLOAT:
        raise Refusal(f"topk of {k} elements")
    values, indices = node.outputs
    low = number(float("-inf"), FLOAT)
    masks = " & ".join(sorted(along.masks))
    left = code.let(f"tl.where({masks}, {text}, {low})" if masks else text, "left")
    taken = code.let(f"({along.text} < 0)", "taken")

    def select(rank: Index) -> None:
        open_ = code.let(f"tl.where({taken}, {low}, {left})")
        best = code.let(f"tl.max({open_}, 0)", "best")
        first = f"tl.where(({open_} == {best}) & ({taken} == 0), {along.text}, {2 * LONGEST})"
        found = code.let(f"tl.min({first}, 0)", "found")
        for value, made in ((values, best), (indices, found)):
            _put(group, code, value, Place(value.shape, axes=(*axes[:axis], rank, *axes[axis:])), made)
        code(f"{taken} = {taken} | ({along.text} == {found})")

    code.loop(str(k), 1, select)


@op(*LINEWISE)
def _alone(code: Code, node: Node, value: Value, place: Place) -> str:
    raise Materialize(node)
