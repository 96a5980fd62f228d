"""Places: which element (or 16 neighbours) of a tensor is meant, as texts of index expressions.

An `Index` is an i64 expression of loop variables; with step 1, lane L of a vector stands at the index + L. A `Place`
is an element of a tensor of some shape. It knows its position along every axis, or as row and column, or as one number;
the others are derived where needed, so that reshapes and reductions of the last axis cost no division.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import gcd

from irx.backends.tvm.arguments import Arguments
from irx.backends.tvm.writer import LANES
from irx.ir.dims import Dim, product

Shape = tuple[Dim, ...]


class Unaligned(Exception):
    """Raised where 16 neighbours of one tensor are not evenly spaced in another: the elements must be taken singly."""


class NotFlat(Exception):
    """Raised where the position along an axis is needed, but only the element's number is known."""


@dataclass(frozen=True)
class Index:
    """`text` is divisible by `multiple` (0: it is 0) and depends on the variables of `loops`."""

    text: str
    step: int = 0
    multiple: int = 0
    loops: frozenset[str] = field(default=frozenset())

    def plus(self, other: Index) -> Index:
        """The sum."""
        if ZERO in (self, other):
            return other if self == ZERO else self
        text = f"{self.text} + {other.text}"
        return Index(text, self.step + other.step, gcd(self.multiple, other.multiple), self.loops | other.loops)

    def times(self, size: int | str) -> Index:
        """The product with a size. Raises Unaligned for lanes that are a named size apart."""
        if self == ZERO or size == 1:
            return self
        if isinstance(size, int):
            return Index(f"{self.grouped} * {size}", self.step * size, self.multiple * size, self.loops)
        if self.step:
            raise Unaligned
        return Index(f"{self.grouped} * {size}", 0, self.multiple, self.loops)

    def divided(self, size: int | str) -> tuple[Index, Index]:
        """Quotient and remainder by a size. Raises Unaligned for lanes that may fall into different quotients."""
        if self == ZERO or size == 1:
            return self, ZERO
        number = f"T.int64({size})" if isinstance(size, int) else size
        common = gcd(self.multiple, size) if isinstance(size, int) else 1
        if self.step and not (self.step == 1 and common % LANES == 0):
            raise Unaligned
        text = f'T.cast({self.text}, "int64")'
        quotient = Index(f"T.truncdiv({text}, {number})", 0, 1, self.loops)
        return quotient, Index(f"T.truncmod({text}, {number})", self.step, common, self.loops)

    @property
    def grouped(self) -> str:
        """The text as an operand."""
        return f"({self.text})" if " " in self.text else self.text


ZERO = Index("0")


def constant(value: int) -> Index:
    """A fixed index."""
    return Index(str(value), 0, abs(value)) if value else ZERO


@dataclass(frozen=True)
class Place:
    """An element of a tensor of `shape`; at least one of the three ways to say which is there."""

    shape: Shape
    axes: tuple[Index, ...] | None = None
    split: tuple[Index, Index] | None = None  # row (of all axes but the last together) and column
    linear: Index | None = None

    @property
    def parts(self) -> tuple[Index, ...]:
        """The indices it is given by."""
        if self.axes is not None:
            return self.axes
        return self.split or ((self.linear,) if self.linear is not None else ())

    @property
    def lanes(self) -> int:
        """1 for one element, 16 where an index steps."""
        return LANES if any(part.step for part in self.parts) else 1

    @property
    def loops(self) -> frozenset[str]:
        """The loop variables it depends on."""
        return frozenset[str]().union(*(part.loops for part in self.parts))


class Places:
    """Conversions of places; named sizes become parameters of the kernel. `flat` forbids divisions."""

    def __init__(self, arguments: Arguments, flat: bool = False) -> None:
        self.arguments, self.flat = arguments, flat

    def size(self, dim: Dim) -> int | str:
        """A size as a number or the text of a parameter."""
        return dim if isinstance(dim, int) else self.arguments.size(dim)

    def index(self, dim: Dim) -> Index:
        """A size as an index."""
        return constant(dim) if isinstance(dim, int) else Index(self.arguments.size(dim), 0, 1)

    def linear(self, place: Place) -> Index:
        """The number of the element in row-major order."""
        if place.linear is not None:
            return place.linear
        if place.split is not None:
            row, column = place.split
            return row.times(self.size(place.shape[-1])).plus(column) if place.shape else ZERO
        return self._joined(place.axes or (), place.shape)

    def split(self, place: Place) -> tuple[Index, Index]:
        """Row and column. Raises NotFlat, Unaligned."""
        if place.split is not None:
            return place.split
        if not place.shape:
            return ZERO, ZERO
        if place.axes is not None:
            return self._joined(place.axes[:-1], place.shape[:-1]), place.axes[-1]
        assert place.linear is not None
        return self._divided(place.linear, place.shape[-1], len(place.shape) == 1)

    def axes(self, place: Place) -> tuple[Index, ...]:
        """The position along every axis. Raises NotFlat, Unaligned."""
        if place.axes is not None:
            return place.axes
        if not place.shape:
            return ()
        row, column = self.split(place)
        found = [column]
        for axis in range(len(place.shape) - 2, -1, -1):
            row, rest = self._divided(row, place.shape[axis], axis == 0)
            found.append(rest)
        return tuple(reversed(found))

    def _divided(self, index: Index, size: Dim, is_first: bool) -> tuple[Index, Index]:
        if size == 1:
            return index, ZERO
        if is_first:
            return ZERO, index
        if self.flat:
            raise NotFlat
        return index.divided(self.size(size))

    def _joined(self, axes: tuple[Index, ...], shape: Shape) -> Index:
        total = ZERO
        for index, size in zip(axes, shape, strict=True):
            total = total.times(self.size(size)).plus(index) if size != 1 else total
        return total

    def broadcast(self, place: Place, shape: Shape) -> Place:
        """The element of a tensor of `shape`, broadcast to the place's shape, that is meant there."""
        if shape == place.shape:
            return place
        if all(size == 1 for size in shape):
            return Place(shape, axes=(ZERO,) * len(shape))
        lead, last = _without_ones(shape[:-1]), shape[-1]
        if not lead:
            return Place(shape, split=(ZERO, self.split(place)[1]))
        if last == 1 and shape[:-1] == place.shape[:-1]:
            return Place(shape, split=(self.split(place)[0], ZERO))
        if last == place.shape[-1] and lead == _without_ones(place.shape[:-1]):
            return (
                Place(shape, split=place.split, linear=place.linear)
                if place.axes is None
                else self._aligned(place, shape)
            )
        return self._aligned(place, shape)

    def _aligned(self, place: Place, shape: Shape) -> Place:
        axes = self.axes(place)[len(place.shape) - len(shape) :]
        return Place(shape, axes=tuple(ZERO if size == 1 else i for i, size in zip(axes, shape, strict=True)))

    def reshaped(self, place: Place, shape: Shape) -> Place:
        """The element of a tensor of `shape` that has the same number."""
        if shape == place.shape:
            return place
        if shape and place.shape and shape[-1] == place.shape[-1] and place.linear is None:
            return Place(shape, split=self.split(place))
        return Place(shape, linear=self.linear(place))


def _without_ones(shape: Shape) -> Shape:
    """The shape from its first size that is not 1 on."""
    first = next((i for i, size in enumerate(shape) if size != 1), len(shape))
    return shape[first:]


def elements(shape: Shape) -> Dim:
    """How many elements a tensor of the shape has."""
    return product(shape)
