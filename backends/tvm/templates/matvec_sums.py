"""What all kinds of sums of a unit of work share: where its weights, x and totals are.

Totals are float32 in a buffer of the thread: row m, vector v at `(m * vectors + v) * 16`.
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.backends.tvm.layouts.tiles import Tiles
from irx.backends.tvm.templates.instructions import prefetch
from irx.backends.tvm.templates.matvec_shape import LINE, Shape
from irx.backends.tvm.writer import LANES, STACK, Writer, at, constant, splat

REGISTERS = 16
"""Vector registers that the innermost loop may use for sums; the rest hold weights and scales."""


@dataclass(frozen=True)
class Unit:
    """Where a unit's inputs are: names of integer variables.

    `tile` is the index of the tile, `offset` that of the first column in it, `rows` the starts of the rows of x in
    scratch (bytes), or in x itself (elements) where it is read directly.
    """

    product: int
    tile: str
    offset: str
    rows: tuple[str, ...]


def totals_bytes(shape: Shape) -> int:
    """Bytes of a thread's totals where they are too many for the stack, else 0."""
    size = 4 * shape.most * shape.vectors * LANES
    return size * len(shape.layouts) if size >= STACK else 0


def emit_first_fetch(w: Writer, shape: Shape) -> None:
    """Ask for the first of the thread's weights, which come while x is prepared."""
    if not shape.prefetch:
        return
    tile, offset = place_of(w, shape, w.let(f"{shape.units} * tid // nt", "first"))
    for i, layout in enumerate(shape.layouts):
        for name, part in layout.parts.items():
            in_line = LINE // int(part.code[1])
            lines = max(1, shape.prefetch * part.bytes // layout.parts[layout.main].bytes // LINE)
            with w.block(f"for line in T.serial({lines}):"):
                w(prefetch(f"w{i}_{name}", f"{_start(layout, name, tile, offset)} + line * {in_line}"))


def place_of(w: Writer, shape: Shape, unit: str) -> tuple[str, str]:
    """Names of the tile of a unit, and of its first column in there."""
    in_tile = shape.layout.tile // shape.columns
    return w.let(f"{unit} // {in_tile}", "tile"), w.let(f"{unit} % {in_tile} * {shape.columns}", "offset")


def _start(layout: Tiles, part: str, tile: str, offset: str) -> str:
    """The index of a unit's first element in a part."""
    return f"{tile} * {layout.parts[part].shape[1] * layout.tile} + {offset}"


class Sums:
    """The sums of one product of one unit; a subclass says how they are made."""

    def __init__(self, w: Writer, shape: Shape, unit: Unit) -> None:
        self.w, self.shape, self.unit = w, shape, unit
        self.layout: Tiles = shape.layouts[unit.product]
        self.vectors, self.most = shape.vectors, shape.most
        self.totals = self._room()

    def _room(self) -> str:
        """The thread's own totals of this product: on the stack where they are few, else a part of `totals`."""
        size = self.most * self.vectors * LANES
        if not totals_bytes(self.shape):
            return self.w.local(size)
        name = self.w.fresh("b")
        place = f"(tid * {len(self.shape.layouts)} + {self.unit.product}) * {size}"
        self.w(f'{name} = T.decl_buffer(({size},), "float32", data=totals.data, elem_offset={place})')
        return name

    def emit(self) -> None:
        """Compute the totals."""
        raise TypeError(f"{type(self).__name__} does not define emit")

    def buffer(self, part: str) -> str:
        """The name of the array of a part."""
        return f"w{self.unit.product}_{part}"

    def start(self, part: str) -> str:
        """The index of the unit's first element in a part."""
        return self.w.let(_start(self.layout, part, self.unit.tile, self.unit.offset), "p")

    def words(self, part: str, start: str, entry: str, vector: str | int) -> str:
        """16 elements of entry `entry` of a part."""
        return at(self.buffer(part), f"{start} + ({entry}) * {self.layout.tile} + {vector} * {LANES}")

    def fetch(self, part: str, start: str, entry: str, vector: str | int) -> None:
        """Ask for the line that lies `prefetch` bytes behind an entry of 4-byte elements."""
        if self.shape.prefetch:
            ahead = self.shape.prefetch // 4
            index = f"{start} + ({entry}) * {self.layout.tile} + {vector} * {LANES} + {ahead}"
            self.w(prefetch(self.buffer(part), index))

    def total(self, row: str | int, vector: str | int) -> str:
        """The total of a row with 16 columns."""
        return at(self.totals, f"({row} * {self.vectors} + {vector}) * {LANES}")

    def x(self, row: int, place: str, view: str) -> str:
        """One element of x in all lanes: element `place` of a prepared row under a view of scratch, or of x itself."""
        if self.shape.is_direct:
            return splat(f"{'x' if view == 'sf' else 'xw'}[{self.unit.rows[row]} + {place}]")
        return splat(f"{view}[{self.unit.rows[row]} + {place}]")

    def places(self) -> list[tuple[int, int]]:
        """All rows and vectors."""
        return [(row, vector) for row in range(self.most) for vector in range(self.vectors)]

    def part(self, row: int, name: str, entry: str, view: str) -> str:
        """An entry of the scales or sums of a prepared row, in all lanes."""
        return self.x(row, f"{self.shape.row_places[name] // 4} + {entry}", view)

    def clear(self) -> None:
        """Zero all totals."""
        with self.w.block(f"for i in T.unroll({self.most * self.vectors}):"):
            self.w(f"{at(self.totals, f'i * {LANES}')} = {constant(0.0)}")
