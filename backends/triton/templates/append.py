"""Kernels before attention: keys and values into the slots of a state, and heads that are results themselves.

A program takes some rows of one head: it loads them, normalises and rotates them, and writes them where they belong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from irx.backends.regions.attention_region import Append, Heads
from irx.backends.regions.lowered import Binding, Call
from irx.backends.regions.views import View
from irx.backends.triton.templates.append_element import emit_store
from irx.backends.triton.templates.append_tailed import emit_tailed
from irx.backends.triton.templates.attention_arguments import Arguments, Launch
from irx.backends.triton.templates.attention_places import Tokens
from irx.backends.triton.templates.attention_storage import Slots, sides, width_of
from irx.backends.triton.templates.attention_tailed import tailed_sides
from irx.backends.triton.templates.rope import Place, emit_heads
from irx.backends.triton.writer import ELEMENTS, Writer
from irx.ir.codes import tailed
from irx.ir.dims import Dim
from irx.tuning import Choice

ELEMENTS_OF_PROGRAM = 2048
KNOBS: Mapping[str, tuple[Choice, ...]] = {"rows": (1, 2, 4, 8, 16, 32, 64), "warps": (1, 2, 4, 8)}


def defaults(channels: int) -> dict[str, Choice]:
    """The schedule without measurements: 16 elements of a thread."""
    rows = max(1, min(64, ELEMENTS_OF_PROGRAM // width_of(channels)))
    return {"rows": rows, "warps": 4 if rows * width_of(channels) >= ELEMENTS_OF_PROGRAM else 2}


@dataclass(frozen=True)
class Target:
    """Where heads go that are a result or a temporary: strides of the axes [b, h, s, d]."""

    name: str
    dtype: str
    binding: Binding
    strides: tuple[Dim, ...]


def emit_append(w: Writer, arguments: Arguments, append: Append, part: int, where: Place, place: Tokens) -> None:
    """Tokens of keys (`part` 0) or values to the places of a state. One with a tail takes one at a time."""
    heads = (append.k, append.v)[part]
    side = (tailed_sides(append.state, append.kv) or sides(append.state, append.kv))[part]
    value = emit_heads(w, arguments, heads, where, side.width)
    head = side.head(w, arguments, where.b, where.h)
    if isinstance(side, Slots):
        emit_store(w, arguments, side, value, head, place)
    else:
        emit_tailed(w, arguments, side, value, head, place)


def append_call(append: Append, schedule: Mapping[str, Choice]) -> Call:
    """Tokens of keys and values into a state: programs by rows, heads, and keys or values."""
    rows, warps = int(schedule["rows"]), int(schedule["warps"])
    rows = rows if tailed(append.kv.code) is None else 1
    w, arguments = Writer(), Arguments()
    count = _row(w, arguments, append.k.view, rows)
    positions = arguments.tensor(append.positions.base)
    place = f"{arguments.index(append.positions, ('b', 's'))} + tl.zeros(({rows}, 1), tl.int32)"
    w(f"slot = tl.load({positions} + {place}, mask=row < {count}, other=-1).to(tl.int32)")
    w("h = tl.program_id(1)")
    for part, heads in enumerate((append.k, append.v)):
        with w.block(f"if (tl.program_id(2) == {part}) & (h < {heads.count}):"):
            where = Place(rows, "b", "h", "s", "(slot >= 0)")
            emit_append(w, arguments, append, part, where, Tokens("slot", where.mask))
    grid = (f"ceil({count}, {rows})", str(max(append.k.count, append.v.count)), "2")
    what = " and rotated" if append.k.rotation is not None else ""
    return arguments.call("append", w, Launch(grid, warps), f"keys{what} and values to {append.kv}")


def heads_call(heads: Heads, target: Target, schedule: Mapping[str, Choice]) -> Call:
    """Heads, normalised and rotated, to a buffer."""
    rows, warps = int(schedule["rows"]), int(schedule["warps"])
    w, arguments = Writer(), Arguments()
    count = _row(w, arguments, heads.view, rows)
    w("h = tl.program_id(1)")
    width = width_of(heads.size)
    value = emit_heads(w, arguments, heads, Place(rows, "b", "h", "s", f"(row < {count})"), width)
    pointer = arguments.pointer(target.name, target.dtype, target.binding)
    shape = heads.view.shape
    index = arguments.index(View(heads.view.base, shape, target.strides), ("b", "h", "s"))
    first = w.let(f"{index} + tl.zeros(({rows}, 1), tl.int32)", "first")
    d = w.let(f"tl.arange(0, {width})[None, :]", "d")
    stored = f"({value}).to({ELEMENTS[target.dtype]})"
    w(f"tl.store({pointer} + {first} + {d}, {stored}, mask=(row < {count}) & ({d} < {heads.size}))")
    grid = (f"ceil({count}, {rows})", str(heads.count))
    return arguments.call(
        "heads", w, Launch(grid, warps), f"{heads.count} heads of {heads.size}, rotated or normalised"
    )


def _row(w: Writer, arguments: Arguments, view: View, rows: int) -> str:
    """Write `b` and `s` [M, 1] of the program's rows; the text of the number of rows."""
    length = arguments.size(view.shape[2])
    w(f"row = tl.program_id(0) * {rows} + tl.arange(0, {rows})[:, None]")
    w(f"b = (row // {length}).to(tl.int64)")
    w(f"s = row % {length}")
    return arguments.size(view.shape[0] * view.shape[2])
