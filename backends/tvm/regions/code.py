"""Code on demand: to compute an element, what it needs is computed first, and nothing else.

`Code.at(value, place)` writes the statements for an element (or 16) of a value and gives its text; intermediate
tensors never exist. Before a loop opens, its body is written once on the side, and what does not depend on the loop's
variable is computed in front of it: so statistics of a row are computed once a row, in a loop of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

from irx.backends.regions.elements import writers_in
from irx.backends.regions.groups import Buffer
from irx.backends.regions.lowered import Binding, PackedPart, Refusal
from irx.backends.tvm.arguments import Arguments
from irx.backends.tvm.elementwise import emit, supports
from irx.backends.tvm.lanes import Lanes, kind, loaded
from irx.backends.tvm.layouts.reading import emit_row
from irx.backends.tvm.regions.places import Index, Place, Places, Unaligned
from irx.backends.tvm.regions.tables import Table
from irx.backends.tvm.writer import LANES, STORAGE, Writer, splat
from irx.ir.dims import Dim
from irx.ir.graph import Literal, Node, Value

Op: TypeAlias = "Callable[[Code, Node, Value, Place], str]"
OPS: dict[str, Op] = {}
"""How to compute an element of a result of an op, for ops that are not elementwise."""
op = writers_in(OPS)


@dataclass
class Code:
    """One kernel that is being written. `buffers` holds what lies in memory; everything else is computed."""

    buffers: dict[Value, Buffer]
    tables: dict[Value, Table]
    alone: frozenset[Value]  # as many elements as the kernel computes: a reduction may run once for each of them
    wide: bool = True  # reductions of rows may use lanes
    flat: bool = False
    w: Writer = field(default_factory=Writer)
    arguments: Arguments = field(default_factory=Arguments)

    def __post_init__(self) -> None:
        self.places = Places(self.arguments, self.flat)
        self.scopes: list[dict[object, str]] = [{}]
        self.loops: list[str] = []
        self.found: dict[object, tuple[Value, Place]] | None = None  # while a loop's body is tried
        self.outside: frozenset[str] = frozenset()
        self.row_depth = 0 if self.flat else 1  # the loops that are open where a row begins
        self.hoisted = False  # a reduction runs in front of a loop over columns
        self.folding = 0  # loops of reductions that are open
        self.loop_count = 0

    # --- elements ---------------------------------------------------------------------------------------------------

    def at(self, value: Value, place: Place) -> str:
        """The text of an element, or of 16 where the place steps."""
        key = (value, place)
        known = next((scope[key] for scope in reversed(self.scopes) if key in scope), None)
        if known is not None:
            return known
        if self.found is not None and place.loops <= self.outside and value.producer is not None:
            self.found[key] = value, place
            return Lanes(self.w, place.lanes).number(0, kind(value.dtype))
        text = self._computed(value, place)
        self.scopes[-1][key] = text
        return text

    def spread(self, value: Value, place: Place, lanes: int) -> str:
        """The element in that many lanes, all equal where the place does not step."""
        text = self.at(value, place)
        return splat(text, lanes) if place.lanes < lanes else text

    def _computed(self, value: Value, place: Place) -> str:
        if value in self.buffers:
            return self._loaded(value, place)
        if value in self.tables:
            return self._looked_up(self.tables[value], place)
        node = value.producer
        if node is None:
            raise Refusal(f"%{value.name} has no buffer")
        if node.op.name in OPS:
            return OPS[node.op.name](self, node, value, place)
        reason = supports(node, sizes=True)
        if reason is not None:
            raise Refusal(reason)
        return self._elementwise(node, place)

    def _elementwise(self, node: Node, place: Place) -> str:
        env: dict[Value, str] = {}
        for operand in node.inputs:
            if operand is None:
                continue
            if isinstance(operand, Literal):
                if not isinstance(operand.value, int | float):
                    size = f'T.cast({self.arguments.size(operand.value)}, "int64")'
                    env[operand] = splat(size, place.lanes)
                continue
            env[operand] = self.spread(operand, self.places.broadcast(place, operand.shape), place.lanes)
        emit(self.w, [node], env, place.lanes)
        return env[node.output]

    def _loaded(self, value: Value, place: Place) -> str:
        buffer, index = self.buffers[value], self.places.linear(place)
        return loaded(self.w, self.pointer_to(buffer), index.text, buffer.dtype, place.lanes, index.step or 1)

    def _looked_up(self, table: Table, place: Place) -> str:
        row, column = self.places.split(place)
        if row.step or (column.step and (column.step != 1 or column.multiple % place.lanes)):
            raise Unaligned
        bindings = {name: PackedPart(table.layout, (table.weight,), name) for name in table.layout.parts}
        parts = {name: self._pointer(table.layout.parts[name].dtype, b) for name, b in bindings.items()}
        return emit_row(self.w, table.layout, parts, row.text, column.text, table.device, place.lanes)

    def pointer_to(self, buffer: Buffer) -> str:
        """The parameter of a buffer."""
        return self._pointer(STORAGE[buffer.dtype], buffer.binding)

    def _pointer(self, dtype: str, binding: Binding) -> str:
        known = next((n for n, b in self.arguments.bindings.items() if b == binding), None)
        return known or self.arguments.pointer(f"b{len(self.arguments.bindings)}", dtype, binding)

    # --- loops and branches -----------------------------------------------------------------------------------------

    def loop(self, extent: Dim | str, body: Callable[[Index], None], *, unroll: bool = False) -> None:
        """`body(index)` for index 0 to before `extent`."""
        self._loop("T.int64(0)", self.extent(extent), body, unroll)

    def share(self, extent: str, body: Callable[[Index], None]) -> None:
        """`body(index)` for this thread's share of 0 to before `extent`."""
        self._loop(f"({extent} * tid) // nt", f"({extent} * (tid + 1)) // nt", body, False)

    def extent(self, size: Dim | str) -> str:
        """A size as the text of an i64."""
        return size if isinstance(size, str) else self.arguments.size(size)

    def _loop(self, start: str, stop: str, body: Callable[[Index], None], unroll: bool) -> None:
        self.loop_count += 1
        name = f"i{self.loop_count}"
        index = Index(name, 0, 1, frozenset([name]))
        for value, place in self._invariants(name, index, body):
            self.at(value, place)
        header = f"for {name} in T.{'unroll' if unroll else 'serial'}({start}, {stop}):"
        self.loops.append(name)
        with self.w.block(header), self.scope():
            body(index)
        self.loops.pop()

    def _invariants(self, name: str, index: Index, body: Callable[[Index], None]) -> list[tuple[Value, Place]]:
        """What the body needs that does not depend on the loop."""
        if self.found is not None:
            return []
        real, count = self.w, self.loop_count
        self.w, self.found, self.outside = Writer(), {}, frozenset(self.loops)
        try:
            with self.scope():
                body(index)
            return list(self.found.values())
        finally:
            self.w, self.found, self.loop_count = real, None, count

    @contextmanager
    def scope(self) -> Iterator[None]:
        """What is computed inside is not known outside."""
        self.scopes.append({})
        yield
        self.scopes.pop()

    def choose(self, condition: str, first: Callable[[], str], second: Callable[[], str], name: str, lanes: int) -> str:
        """A register with `first` where the (scalar) condition holds, else `second`; only one of them is computed."""
        result = self.w.register(dtype=name, lanes=lanes)
        for header, branch in ((f"if {condition}:", first), ("else:", second)):
            with self.w.block(header), self.scope():
                self.w(f"{result} = {branch()}")
        return result

    def columns(self, extent: Dim, body: Callable[[Index], None]) -> None:
        """`body(index)` for all of 0 to before `extent`: 16 at once where that is possible, then one by one."""
        whole = self.vectors(extent)
        if whole != 0:
            self.loop(whole, lambda i: body(Index(f"{i.text} * {LANES}", 1, LANES, i.loops)))
        self.rest(extent, whole, body)

    def vectors(self, extent: Dim) -> Dim:
        """How many whole vectors there are."""
        return extent // LANES if self.wide else 0

    @contextmanager
    def reducing(self) -> Iterator[None]:
        """Loops of a reduction."""
        self.folding += 1
        yield
        self.folding -= 1

    def rest(self, extent: Dim, whole: Dim, body: Callable[[Index], None]) -> None:
        """`body(index)` for each of what `whole` vectors leave."""
        left = extent - whole * LANES
        if left == 0:
            return
        start = self.places.index(whole * LANES)
        self.loop(left, lambda i: body(start.plus(i)))
