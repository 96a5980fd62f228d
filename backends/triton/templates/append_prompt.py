"""Tokens of a prompt for a state of codes with a tail: codes before attention, which reads the ring, the ring after it.

keys, values, rotated       -> buffers of this call (`Fresh`)
every value, every group    -> codes, of keys that are in the ring and in the buffers
[attention]
the newest tokens, a tail   -> ring
"""

from __future__ import annotations

from irx.backends.regions.attention_region import Append
from irx.backends.regions.lowered import Call
from irx.backends.triton.templates.append_tailed import emit_group, emit_keys, emit_value
from irx.backends.triton.templates.attention_arguments import Arguments, Launch
from irx.backends.triton.templates.attention_places import Tokens
from irx.backends.triton.templates.attention_tailed import Fresh, TailedKeys, TailedValues
from irx.backends.triton.writer import Writer

ROWS = 16  # tokens of a program that fills the ring
WARPS = 4


def codes_call(append: Append, keys: TailedKeys, values: TailedValues) -> Call:
    """Codes of all values, and of the groups of keys that are complete now; both sides are `fresh`."""
    w, arguments = Writer(), Arguments()
    fresh = _start(w, arguments, append, keys, 1)
    with w.block("if tl.program_id(2) == 0:"):
        w(f"done = (slot >= 0) & ((slot + 1) % {keys.code.group} == 0)")
        with w.block("if tl.max(tl.max(done.to(tl.int32), 1), 0) > 0:"):
            first = keys.head(w, arguments, "b", "h").origin(w, Tokens("slot", "done"))
            fresh.emit_shift(w, arguments)
            _, number, slots = emit_group(w, keys, "slot")
            d = w.let(f"tl.arange(0, {keys.width})[None, :]", "d")
            tokens = keys.whole(w, arguments, first, Tokens(slots, f"({number} >= 0)"), d, "f32")
            emit_keys(w, arguments, keys, tokens, first, "slot", (number, slots, d))
    with w.block("if (tl.program_id(2) == 1) & (tl.max(tl.max(slot, 1), 0) >= 0):"):
        place = Tokens("slot", "(slot >= 0)")
        first = values.head(w, arguments, "b", "h").origin(w, place)
        fresh.emit_shift(w, arguments)
        d = w.let(f"tl.arange(0, {values.width})[None, :]", "d")
        emit_value(w, arguments, values, values.whole(w, arguments, first, place, d, "f32"), first, place)
    return _call(w, arguments, append, "append_codes", 1, f"keys and values of a prompt to {append.kv}, as codes")


def ring_call(append: Append, keys: TailedKeys, values: TailedValues) -> Call:
    """The tokens that no later ones of this call take the place of."""
    w, arguments, tail = Writer(), Arguments(), keys.code.tail
    fresh = _start(w, arguments, append, keys, ROWS)
    length = arguments.size(append.k.view.shape[2])
    place = arguments.index(append.positions, ("b", f"(s + {tail})"))
    base = arguments.tensor(append.positions.base)
    w(f"later = tl.load({base} + {place}, mask=(slot >= 0) & (s + {tail} < {length}), other=-1)")
    w("newest = (slot >= 0) & (later < 0)")
    fresh.emit_shift(w, arguments)
    for part, side in enumerate((keys, values)):
        with w.block(f"if tl.program_id(2) == {part}:"):
            first = side.head(w, arguments, "b", "h").origin(w, Tokens("slot", "newest"))
            d = w.let(f"tl.arange(0, {side.width})[None, :]", "d")
            tile = side.whole(w, arguments, first, Tokens("slot", "newest"), d, side.dtype)
            w(f"tl.store({side.ring(w, arguments, first, 'slot', d)}, {tile}, mask=newest & ({d} < {side.channels}))")
    return _call(w, arguments, append, "append_tail", ROWS, f"the newest tokens of a prompt to {append.kv}")


def _start(w: Writer, arguments: Arguments, append: Append, keys: TailedKeys, rows: int) -> Fresh:
    """Write `b`, `s` and `slot` [M, 1] of the program's rows, and its head `h`."""
    fresh = keys.fresh
    assert fresh is not None
    length = arguments.size(fresh.length)
    w(f"row = tl.program_id(0) * {rows} + tl.arange(0, {rows})[:, None]")
    w(f"b = (row // {length}).to(tl.int64)")
    w(f"s = row % {length}")
    w("h = tl.program_id(1)")
    place = arguments.index(append.positions, ("b", "s"))
    inside = f"row < {arguments.size(append.k.view.shape[0] * fresh.length)}"
    w(f"slot = tl.load({arguments.tensor(append.positions.base)} + {place}, mask={inside}, other=-1).to(tl.int32)")
    return fresh


def _call(w: Writer, arguments: Arguments, append: Append, name: str, rows: int, note: str) -> Call:
    count = arguments.size(append.k.view.shape[0] * append.k.view.shape[2])
    return arguments.call(name, w, Launch((f"ceil({count}, {rows})", str(append.kv.heads), "2"), WARPS), note)
