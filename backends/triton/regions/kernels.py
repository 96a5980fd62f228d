"""The kernel of a group of values with equally many elements: how programs share them.

Programs take blocks of elements where no row is reduced. Else each takes a row, all columns of it in one block or in
pieces; or, where the results themselves are reductions of rows, a single element.
"""

from __future__ import annotations

from collections.abc import Sequence

from irx.backends.regions.groups import LINEWISE, Buffer, Buffers
from irx.backends.regions.lowered import Call, Data, Refusal
from irx.backends.triton.elementwise import computes
from irx.backends.triton.kernel import Kernel
from irx.backends.triton.regions.code import Code, Single, block_width, power_of_two
from irx.backends.triton.regions.lines import lines
from irx.backends.triton.regions.places import Index, Place, Shape, elements
from irx.backends.triton.regions.tables import Table
from irx.backends.triton.writer import narrowed
from irx.ir.dims import Dim, product
from irx.ir.graph import Value
from irx.ir.types import TensorType

BLOCK = 1024  # elements that one program computes, where they are independent
LARGE = 1 << 30  # elements from which an index may not fit 32 bits
WARPS = {512: 2, 2048: 4, 4096: 8}


class Group:
    """One kernel: values of equally many elements."""

    def __init__(
        self, name: str, tables: dict[Value, Table], values: Sequence[Value], stored: Buffers, buffers: Buffers
    ) -> None:
        self.name, self.tables, self.stored = name, tables, stored
        self.values, self.buffers = values, buffers
        self.shape = max((v.shape for v in values), key=_preference)
        self.rows: Dim = product(self.shape[:-1])
        self.columns: Dim = self.shape[-1] if self.shape else 1

    def call(self) -> Call:
        """The call of the first form that is possible. Raises Refusal, Materialize."""
        producer = self.values[0].producer
        if producer is not None and producer.op.name in LINEWISE:
            return lines(self, producer)
        if not self._reduces():
            return self._flat()
        try:
            return self._in_rows()
        except Single:
            return self._one_by_one()

    def code(self, width: int) -> Code:
        """An empty kernel; `width` elements are one block of its results."""
        alone = frozenset(v for v in self._all_values() if elements(v.shape) == elements(self.shape))
        return Code(dict(self.buffers), alone, width, self.tables)

    def finish(self, code: Code, grid: str, width: int) -> Call:
        """The call of the kernel that was written."""
        ops = ", ".join(dict.fromkeys(v.producer.op.name for v in self.values if v.producer is not None))
        (scope,) = code.scopes
        warps = next((warps for most, warps in WARPS.items() if width <= most), 8)
        note = f"{self.name}: {ops} of {list(self.shape)}"
        body = "\n".join(scope.lines) + "\n"
        kernel = Kernel(self.name, tuple(code.parameters), body, (grid,), warps=warps, stages=1, note=note)
        return Call(kernel, code.bindings)

    def store(self, code: Code, place: Place) -> None:
        """Compute and write the values at a place."""
        for value in self.values:
            buffer = self.stored[value]
            spot = code.places.reshaped(place, value.shape)
            text = code.at(value, spot)
            target = f"{code.pointer(buffer)} + {code.places.linear(spot).grouped}"
            mask = f", mask={place.mask}" if place.mask else ""
            code(f"tl.store({target}, {narrowed(text, buffer.dtype)}{mask})")

    def _all_values(self) -> set[Value]:
        """What the values are computed from, up to what lies in memory."""
        found, waiting = set(self.values), list(self.values)
        while waiting:
            node = waiting.pop().producer
            for value in node.inputs if node is not None else ():
                if isinstance(value, Value) and isinstance(value.type, TensorType) and value not in found:
                    found.add(value)
                    waiting += [value] if value not in self.buffers else []
        return found

    def _reduces(self) -> bool:
        made = (v.producer for v in self._all_values() if v not in self.buffers and v.producer is not None)
        return any(node.op.name in ("sum", "mean", "amax", "amin", "any", "all", "argmax") for node in made)

    def _flat(self) -> Call:
        total = elements(self.shape)
        width = min(BLOCK, power_of_two(total)) if isinstance(total, int) else BLOCK
        code = self.code(width)
        wide = ".to(tl.int64)" if not isinstance(total, int) or total >= LARGE else ""
        text = code.let(f"tl.program_id(0){wide} * {width} + tl.arange(0, {width})", "i")
        whole = isinstance(total, int) and total % width == 0
        masks = frozenset[str]() if whole else frozenset([code.let(f"{text} < {code.size(total)}", "m")])
        self.store(code, Place(self.shape, linear=Index(text, 0, True, masks)))
        return self.finish(code, f"ceil({code.size(total)}, {width})", width)

    def _in_rows(self) -> Call:
        """A row for each program: reductions of it run once."""
        if self.columns == 1:
            raise Single
        width = block_width(self.columns)
        code = self.code(width)
        row = Index(code.let("tl.program_id(0).to(tl.int64)", "row"))
        code.blocks(self.columns, lambda column: self.store(code, Place(self.shape, split=(row, column))))
        return self.finish(code, code.size(self.rows), width)

    def _one_by_one(self) -> Call:
        code = self.code(1)
        index = Index(code.let("tl.program_id(0).to(tl.int64)", "row"))
        self.store(code, Place(self.shape, linear=index))
        return self.finish(code, code.size(elements(self.shape)), 2048)


def _preference(shape: Shape) -> tuple[int, int]:
    """The domain is the shape with the longest rows."""
    last = shape[-1] if shape else 1
    return (last if isinstance(last, int) else 1 << 30), len(shape)


def data(value: Value) -> Buffer:
    """The buffer of an input or output of the body. Raises Refusal for a dtype that is not read."""
    if not computes(value.dtype):
        raise Refusal(f"{value.type} is not read by generated kernels")
    return Buffer(Data(value), value.dtype)
