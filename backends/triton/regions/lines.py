"""Ops that go along an axis in order: cumulative sums, and the k largest elements. A program for each line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from irx.backends.regions.groups import LINEWISE, Materialize
from irx.backends.regions.lowered import Call, Refusal
from irx.backends.triton.elementwise import FLOAT, converted, kind, number
from irx.backends.triton.regions.code import PIECE, Code, op, power_of_two
from irx.backends.triton.regions.moves import axis_of, size_of, tensor
from irx.backends.triton.regions.places import Index, Place
from irx.backends.triton.writer import narrowed
from irx.ir.dims import Dim, product
from irx.ir.graph import Node, Value

if TYPE_CHECKING:
    from irx.backends.triton.regions.kernels import Group

LONGEST = 1 << 16  # elements of a line
MOST_SELECTED = 64


def lines(group: Group, node: Node) -> Call:
    """The kernel of a node of these ops. Raises Refusal for lines that it cannot go along."""
    x = tensor(node)
    axis = axis_of(node, len(x.shape))
    code = group.code(1)
    others = (*x.shape[:axis], *x.shape[axis + 1 :])
    own = Index(code.let("tl.program_id(0).to(tl.int64)", "line"))
    axes = code.places.axes(Place(others, linear=own))
    line = Line(group, code, node, lambda index: (*axes[:axis], index, *axes[axis:]))
    length = x.shape[axis]
    if node.op.name == "cumsum":
        _cumsum(line, length)
    elif isinstance(length, int) and length <= LONGEST:
        _topk(line, length)
    else:
        raise Refusal(f"{node.op.name} along {length} elements")
    return group.finish(code, code.size(product(others)), power_of_two(length) if isinstance(length, int) else PIECE)


@dataclass(frozen=True)
class Line:
    """One line of a tensor, which one program goes along; `axes` are the axes of its elements at an index."""

    group: Group
    code: Code
    node: Node
    axes: Callable[[Index], tuple[Index, ...]]

    def at(self, index: Index) -> str:
        """The elements there, of the kind of the result."""
        x, result = tensor(self.node), self.node.outputs[0]
        text = self.code.at(x, Place(x.shape, axes=self.axes(index)))
        return converted(text, kind(x.dtype), kind(result.dtype))

    def put(self, value: Value, index: Index, text: str) -> None:
        """Write elements of a result, if it is stored."""
        if value not in self.group.stored:
            return
        buffer, place = self.group.stored[value], Place(value.shape, axes=self.axes(index))
        mask = f", mask={place.mask}" if place.mask else ""
        target = f"{self.code.pointer(buffer)} + {self.code.places.linear(place).grouped}"
        self.code(f"tl.store({target}, {narrowed(text, buffer.dtype)}{mask})")


def _cumsum(line: Line, length: Dim) -> None:
    """Piece after piece, each on top of the sum of those before."""
    code, of = line.code, kind(line.node.output.dtype)
    total = code.let(f"tl.full((), {number(0, of)}, {of})", "total")

    def piece(index: Index) -> None:
        text = line.at(index)
        masks = " & ".join(sorted(index.masks))
        kept = code.let(f"tl.where({masks}, {text}, {number(0, of)})" if masks else text)
        line.put(line.node.output, index, f"tl.cumsum({kept}, 0) + {total}")
        code(f"{total} = {total} + tl.sum({kept}, 0)")

    code.blocks(length, piece)


def _topk(line: Line, length: int) -> None:
    """The largest is taken k times, the first of equal ones first."""
    code, node = line.code, line.node
    k, along = size_of(node, "k"), line.code.row(length)
    if not isinstance(k, int) or k > MOST_SELECTED or kind(tensor(node).dtype) != FLOAT:
        raise Refusal(f"topk of {k} elements")
    values, indices = node.outputs
    low = number(float("-inf"), FLOAT)
    masks, text = " & ".join(sorted(along.masks)), line.at(along)
    left = code.let(f"tl.where({masks}, {text}, {low})" if masks else text, "left")
    taken = code.let(f"({along.text} < 0)", "taken")

    def select(rank: Index) -> None:
        still = code.let(f"tl.where({taken}, {low}, {left})")
        best = code.let(f"tl.max({still}, 0)", "best")
        first = f"tl.where(({still} == {best}) & ({taken} == 0), {along.text}, {2 * LONGEST})"
        found = code.let(f"tl.min({first}, 0)", "found")
        line.put(values, rank, best)
        line.put(indices, rank, found)
        code(f"{taken} = {taken} | ({along.text} == {found})")

    code.loop(str(k), 1, select)


@op(*LINEWISE)
def _alone(code: Code, node: Node, value: Value, place: Place) -> str:
    raise Materialize(node)
