"""The kernel of a group of values with equally many elements: how threads share them.

Its domain is the shape of one of them, as rows of the
last axis: threads share all elements where no position along an axis is needed, rows where rows have statistics of
their own, else pieces of rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from irx.backends.regions.groups import Buffer
from irx.backends.regions.lowered import Call, Data, Refusal
from irx.backends.tvm.elementwise import store
from irx.backends.tvm.regions.code import Code
from irx.backends.tvm.regions.places import ZERO, Index, NotFlat, Place, Shape, Unaligned, elements
from irx.backends.tvm.regions.scans import SCANS, scan_call
from irx.backends.tvm.regions.tables import Table
from irx.backends.tvm.writer import LANES, STORAGE
from irx.ir.dims import Dim, product
from irx.ir.graph import Value
from irx.ir.types import TensorType

PIECE = 256  # columns that one thread computes at once, where rows may be cut


class Group:
    """One kernel: values of equally many elements."""

    def __init__(
        self,
        name: str,
        tables: dict[Value, Table],
        stored: dict[Value, Buffer],
        values: Sequence[Value],
        buffers: dict[Value, Buffer],
    ) -> None:
        self.name, self.stored, self.tables = name, stored, tables
        self.values, self.buffers = values, buffers
        self.shape = max((v.shape for v in values), key=_preference)
        self.rows: Dim = product(self.shape[:-1])
        self.columns: Dim = self.shape[-1] if self.shape else 1

    def call(self) -> Call:
        """The call of the first form that is possible. Raises Refusal, Materialize."""
        producer = self.values[0].producer
        if producer is not None and producer.op.name in SCANS:
            code = self._code(wide=True, flat=False)
            return scan_call(code, producer, self.name, self.stored)
        for flat, in_lanes, wide in (
            (True, True, True),
            (False, True, True),
            (True, False, True),
            (False, False, True),
            (False, False, False),
        ):
            try:
                return self._written(flat, in_lanes, wide)
            except (NotFlat, Unaligned):
                continue
        raise Refusal("elements of the region cannot be addressed")

    def _code(self, *, wide: bool, flat: bool) -> Code:
        alone = frozenset(v for v in self._all_values() if elements(v.shape) == elements(self.shape))
        return Code(dict(self.buffers), self.tables, alone, wide, flat)

    def _all_values(self) -> set[Value]:
        found, waiting = set(self.values), list(self.values)
        while waiting:
            node = waiting.pop().producer
            for value in node.inputs if node is not None else ():
                if isinstance(value, Value) and isinstance(value.type, TensorType) and value not in found:
                    found.add(value)
                    waiting.append(value)
        return found

    def _written(self, flat: bool, in_lanes: bool, wide: bool) -> Call:
        code = self._code(wide=wide, flat=flat)
        if flat:
            self._flat(code, in_lanes)
            return self._finish(code)
        pieces = self._pieces(in_lanes)
        self._in_rows(code, in_lanes, pieces)
        if code.hoisted and pieces != 1:  # a row's statistics would be computed for every piece of it
            code = self._code(wide=wide, flat=False)
            self._in_rows(code, in_lanes, 1)
        return self._finish(code)

    def _finish(self, code: Code) -> Call:
        note = ", ".join(dict.fromkeys(v.producer.op.name for v in self.values if v.producer is not None))
        return code.arguments.call(self.name, code.w, f"{self.name}: {note} of {list(self.shape)}")

    def _flat(self, code: Code, in_lanes: bool) -> None:
        total = elements(self.shape)
        if not in_lanes:
            code.share(code.extent(total), lambda i: self._store(code, Place(self.shape, linear=i)))
            return
        whole = total // LANES
        if whole != 0:
            code.share(code.extent(whole), lambda i: self._store(code, Place(self.shape, linear=_vector(i))))
        if total - whole * LANES != 0:
            with code.w.block("if tid == nt - 1:"), code.scope():
                code.rest(total, whole, lambda i: self._store(code, Place(self.shape, linear=i)))

    def _pieces(self, in_lanes: bool) -> int:
        """How many pieces rows are cut into."""
        if not isinstance(self.columns, int) or self.columns <= PIECE:
            return 1
        sizes = range(LANES if in_lanes else 1, PIECE + 1, LANES if in_lanes else 1)
        return min((self.columns // size for size in sizes if self.columns % size == 0), default=1)

    def _in_rows(self, code: Code, in_lanes: bool, pieces: int) -> None:
        def row(i: Index) -> None:
            if pieces == 1:
                self._row(code, in_lanes, i, ZERO, self.columns)
                return
            assert isinstance(self.columns, int)
            number, piece = i.divided(pieces)
            self._row(code, in_lanes, number, piece.times(self.columns // pieces), self.columns // pieces)

        code.share(code.extent(self.rows * pieces), row)

    def _row(self, code: Code, in_lanes: bool, row: Index, start: Index, columns: Dim) -> None:
        def body(index: Index) -> None:
            self._store(code, Place(self.shape, split=(row, start.plus(index))))

        if in_lanes:
            code.columns(columns, body)
        else:
            code.loop(columns, body)

    def _store(self, code: Code, place: Place) -> None:
        for value in self.values:
            buffer = self.stored[value]
            spot = code.places.reshaped(place, value.shape)
            text = code.spread(value, spot, place.lanes)
            name = code.pointer_to(buffer)
            store(code.w, name, code.places.linear(place).text, buffer.dtype, text, place.lanes)


def _vector(index: Index) -> Index:
    return Index(f"{index.text} * {LANES}", 1, LANES, index.loops)


def _preference(shape: Shape) -> tuple[int, int]:
    """The domain is the shape with the longest rows."""
    last = shape[-1] if shape else 1
    return (last if isinstance(last, int) else 1 << 30), len(shape)


def data(value: Value) -> Buffer:
    """The buffer of an input or output of the body."""
    if value.dtype not in STORAGE:
        raise Refusal(f"{value.type} is not read by generated kernels")
    return Buffer(Data(value), value.dtype)
