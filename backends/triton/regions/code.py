"""Code on demand: to compute elements, what they need is computed first, and nothing else.

`Code.at(value, place)` writes the statements for the elements of a value at a place and gives their text; intermediate
tensors never exist. Every open loop has lines of its own, and a statement goes to the lines of the outermost loop that
it depends on, in front of the loops inside: so statistics of a row are computed once a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

from irx.backends.regions.elements import writers_in
from irx.backends.regions.groups import Buffer
from irx.backends.regions.lowered import Binding, Refusal
from irx.backends.triton.elementwise import emit, supports
from irx.backends.triton.kernel import Parameter, Pointer, Size
from irx.backends.triton.regions.places import ZERO, Index, Place, Places
from irx.backends.triton.regions.tables import Table, read
from irx.backends.triton.writer import Writer
from irx.ir.dims import Dim
from irx.ir.graph import Literal, Node, Value

LARGEST_BLOCK = 8192  # elements of a row that one block holds; longer rows are read in pieces
PIECE = 2048

Op: TypeAlias = "Callable[[Code, Node, Value, Place], str]"
OPS: dict[str, Op] = {}
"""How to compute elements of a result of an op, for ops that are not elementwise."""
op = writers_in(OPS)


class Single(Exception):
    """Raised where a reduction is needed for each element of a block: the kernel must compute one at a time."""


@dataclass
class Scope:
    """The lines in front of, or inside, one loop, and what is known there."""

    lines: list[str] = field(default_factory=list)
    known: dict[object, str] = field(default_factory=dict)


@dataclass
class Code:
    """One kernel that is being written. `buffers` holds what lies in memory; everything else is computed."""

    buffers: dict[Value, Buffer]
    alone: frozenset[Value]  # as many elements as the kernel computes: a reduction may run once for each of them
    width: int  # elements of a block of results
    tables: dict[Value, Table] = field(default_factory=dict)
    parameters: list[Parameter] = field(default_factory=list)
    bindings: dict[str, Binding] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.places = Places(self.size)
        self.scopes = [Scope()]
        self.count = 0
        self.folding = 0  # reductions that are being written
        self._sizes: dict[Dim, str] = {}

    # --- elements ---------------------------------------------------------------------------------------------------

    def at(self, value: Value, place: Place) -> str:
        """The text of the elements: float32, int64 or int1; those outside of the place's mask are anything."""
        scope = self.scopes[place.level]
        key = (value, place)
        if key not in scope.known:
            with self.level(place.level):
                scope.known[key] = self._computed(value, place)
        return scope.known[key]

    def let(self, text: str, prefix: str = "v") -> str:
        """A name for an expression, in the innermost loop."""
        self.count += 1
        name = f"{prefix}_{self.count}"
        self.scopes[-1].lines.append(f"{name} = {text}")
        return name

    def __call__(self, line: str) -> None:
        """A statement in the innermost loop."""
        self.scopes[-1].lines.append(line)

    def _computed(self, value: Value, place: Place) -> str:
        if value in self.buffers:
            return self._loaded(value, place)
        if value in self.tables:
            return read(self, self.tables[value], place)
        node = value.producer
        if node is None:
            raise Refusal(f"%{value.name} has no buffer")
        if node.op.name in OPS:
            return OPS[node.op.name](self, node, value, place)
        if (reason := supports(node, sizes=True)) is not None:
            raise Refusal(reason)
        return self._elementwise(node, place)

    def _elementwise(self, node: Node, place: Place) -> str:
        env: dict[Value, str] = {}
        for operand in node.inputs:
            if isinstance(operand, Literal):
                if not isinstance(operand.value, int | float):
                    env[operand] = self.let(f"tl.full((), {self.size(operand.value)}, tl.int64)")
            elif operand is not None:
                env[operand] = self.at(operand, self.places.broadcast(place, operand.shape))
        w = Writer()
        w.fresh = self._fresh  # type: ignore[method-assign]
        emit(w, [node], env)
        self.scopes[-1].lines += w.text().splitlines()
        return env[node.output]

    def _fresh(self, prefix: str = "v") -> str:
        self.count += 1
        return f"{prefix}_{self.count}"

    def _loaded(self, value: Value, place: Place) -> str:
        buffer, index = self.buffers[value], self.places.linear(place)
        w = Writer()
        w.fresh = self._fresh  # type: ignore[method-assign]
        name = w.load(self.pointer(buffer), index.grouped, buffer.dtype, place.mask)
        self.scopes[-1].lines += w.text().splitlines()
        return name

    # --- parameters -------------------------------------------------------------------------------------------------

    def pointer(self, buffer: Buffer) -> str:
        """The parameter of a buffer."""
        known = next((name for name, bound in self.bindings.items() if bound == buffer.binding), None)
        if known is None:
            known = f"b{len(self.bindings)}"
            self.parameters.append(Pointer(known, buffer.dtype))
            self.bindings[known] = buffer.binding
        return known

    def size(self, dim: Dim) -> str:
        """The text of a size: a number, or a parameter."""
        if isinstance(dim, int):
            return str(dim)
        if dim not in self._sizes:
            self._sizes[dim] = f"n{len(self._sizes)}"
            self.parameters.append(Size(self._sizes[dim]))
            self.bindings[self._sizes[dim]] = dim
        return self._sizes[dim]

    # --- loops ------------------------------------------------------------------------------------------------------

    @contextmanager
    def level(self, level: int) -> Iterator[None]:
        """Statements go to the lines of that loop, in front of the loops inside it."""
        inner = self.scopes[level + 1 :]
        del self.scopes[level + 1 :]
        yield
        self.scopes += inner

    def loop(self, extent: str, step: int, body: Callable[[Index], None]) -> None:
        """`body(index)` for index 0, step, ... before `extent`, in the innermost loop."""
        self.count += 1
        name = f"k_{self.count}"
        self.scopes.append(Scope())
        body(Index(name, len(self.scopes) - 1))
        inside = self.scopes.pop()
        self.scopes[-1].lines.append(f"for {name} in range(0, {extent}, {step}):")
        self.scopes[-1].lines += [f"    {line}" for line in inside.lines or ["pass"]]

    def blocks(self, extent: Dim, body: Callable[[Index], None], most: int = LARGEST_BLOCK) -> None:
        """`body(index)` for all of 0 to before `extent`, in blocks: in one without a loop where it is short."""
        if extent == 1:
            body(ZERO)
            return
        if isinstance(extent, int) and power_of_two(extent) <= most:
            body(self.row(extent))
            return
        size = self.size(extent)

        def piece(start: Index) -> None:
            text = self.let(f"{start.text} + tl.arange(0, {PIECE})", "i")
            whole = isinstance(extent, int) and extent % PIECE == 0
            masks = frozenset[str]() if whole else frozenset([self.let(f"{text} < {size}", "m")])
            body(Index(text, start.level, True, masks))

        self.loop(size, PIECE, piece)

    def row(self, extent: int) -> Index:
        """All of 0 to before `extent` as one block, the same for all who ask."""
        outer = self.scopes[0]
        width = power_of_two(extent)
        key = ("row", extent)
        if key not in outer.known:
            with self.level(0):
                outer.known[key] = self.let(f"tl.arange(0, {width})", "i")
                if width != extent:
                    outer.known["mask", extent] = self.let(f"{outer.known[key]} < {extent}", "m")
        masks = frozenset([outer.known["mask", extent]]) if width != extent else frozenset[str]()
        return Index(outer.known[key], 0, True, masks)


def block_width(extent: Dim) -> int:
    """How many of `extent` elements `Code.blocks` puts into a block: all of a short row, else a piece."""
    width = power_of_two(extent) if isinstance(extent, int) else PIECE
    return width if width <= LARGEST_BLOCK else PIECE


def power_of_two(size: int) -> int:
    """The smallest power of two that is not below the size."""
    return 1 << max(0, size - 1).bit_length()
