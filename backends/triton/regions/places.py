"""Places: which elements of a tensor are meant, as texts of index expressions.

An `Index` is an integer expression, of one number or of a block of them; `masks` say which numbers of the block stand
for elements. Its `level` is the number of loops whose variables it depends on. A `Place` knows its position along
every axis, or as row and column, or as one number; the others are derived where needed, so that reshapes and
reductions of the last axis cost no division.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from irx.ir.dims import Dim, product

Shape = tuple[Dim, ...]


@dataclass(frozen=True)
class Index:
    """See above. `block` is True for more than one number."""

    text: str
    level: int = 0
    block: bool = False
    masks: frozenset[str] = field(default=frozenset())

    def joined(self, text: str, *others: Index) -> Index:
        """Another expression, of this index and others."""
        every = (self, *others)
        masks = frozenset[str]().union(*(one.masks for one in every))
        return Index(text, max(one.level for one in every), any(one.block for one in every), masks)

    def plus(self, other: Index) -> Index:
        """The sum."""
        if ZERO in (self, other):
            return other if self == ZERO else self
        return self.joined(f"{self.text} + {other.text}", other)

    def times(self, size: str) -> Index:
        """The product with a size."""
        return self if self == ZERO or size == "1" else self.joined(f"{self.grouped} * {size}")

    def divided(self, size: str) -> tuple[Index, Index]:
        """Quotient and remainder by a size."""
        if self == ZERO or size == "1":
            return self, ZERO
        return self.joined(f"{self.grouped} // {size}"), self.joined(f"{self.grouped} % {size}")

    @property
    def grouped(self) -> str:
        """The text as an operand."""
        return f"({self.text})" if " " in self.text else self.text


ZERO = Index("0")


@dataclass(frozen=True)
class Place:
    """Elements of a tensor of `shape`; at least one of the three ways to say which is there."""

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
    def block(self) -> bool:
        """True for more than one element."""
        return any(part.block for part in self.parts)

    @property
    def level(self) -> int:
        """The loops it depends on."""
        return max((part.level for part in self.parts), default=0)

    @property
    def mask(self) -> str:
        """Which of the elements there are; empty for all."""
        return " & ".join(sorted(frozenset[str]().union(*(part.masks for part in self.parts))))


class Places:
    """Conversions of places. `size` gives the text of a size."""

    def __init__(self, size: Callable[[Dim], str]) -> None:
        self.size = size

    def linear(self, place: Place) -> Index:
        """The number of the element in row-major order."""
        if place.linear is not None:
            return place.linear
        if place.split is not None:
            row, column = place.split
            return row.times(self.size(place.shape[-1])).plus(column) if place.shape else ZERO
        return self._joined(place.axes or (), place.shape)

    def split(self, place: Place) -> tuple[Index, Index]:
        """Row and column."""
        if place.split is not None:
            return place.split
        if not place.shape:
            return ZERO, ZERO
        if place.axes is not None:
            return self._joined(place.axes[:-1], place.shape[:-1]), place.axes[-1]
        assert place.linear is not None
        return self._divided(place.linear, place.shape[-1], len(place.shape) == 1)

    def axes(self, place: Place) -> tuple[Index, ...]:
        """The position along every axis."""
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

    def broadcast(self, place: Place, shape: Shape) -> Place:
        """The elements of a tensor of `shape`, broadcast to the place's shape, that are meant there."""
        if shape == place.shape:
            return place
        if all(size == 1 for size in shape):
            return Place(shape, axes=(ZERO,) * len(shape))
        lead = shape[:-1]
        if all(size == 1 for size in lead):
            return Place(shape, split=(ZERO, self.split(place)[1]))
        if shape[-1] == 1 and lead == place.shape[:-1]:
            return Place(shape, split=(self.split(place)[0], ZERO))
        axes = self.axes(place)[len(place.shape) - len(shape) :]
        return Place(shape, axes=tuple(ZERO if size == 1 else i for i, size in zip(axes, shape, strict=True)))

    def reshaped(self, place: Place, shape: Shape) -> Place:
        """The elements of a tensor of `shape` that have the same numbers."""
        if shape == place.shape:
            return place
        if shape and place.shape and shape[-1] == place.shape[-1] and place.linear is None:
            return Place(shape, split=self.split(place))
        return Place(shape, linear=self.linear(place))

    def _divided(self, index: Index, size: Dim, is_first: bool) -> tuple[Index, Index]:
        if size == 1:
            return index, ZERO
        return (ZERO, index) if is_first else index.divided(self.size(size))

    def _joined(self, axes: tuple[Index, ...], shape: Shape) -> Index:
        total = ZERO
        for index, size in zip(axes, shape, strict=True):
            total = total.times(self.size(size)).plus(index) if size != 1 else total
        return total


def elements(shape: Shape) -> Dim:
    """How many elements a tensor of the shape has."""
    return product(shape)
