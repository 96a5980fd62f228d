"""A token for a state of codes with a tail: into the rings as it is; values as codes at once, keys by whole groups.

Codes are made as `irx.runtime.kv_tailed` makes them. The last key of a group finds the others in the ring.
"""

from __future__ import annotations

from irx.backends.triton.templates.append_element import emit_grid
from irx.backends.triton.templates.attention_arguments import Arguments
from irx.backends.triton.templates.attention_places import Head, Tokens
from irx.backends.triton.templates.attention_tailed import BLOCK, TailedKeys, TailedValues
from irx.backends.triton.writer import ELEMENTS, Writer


def emit_tailed(
    w: Writer, arguments: Arguments, side: TailedKeys | TailedValues, token: str, head: Head, place: Tokens
) -> None:
    """Write one token, a float32 tile [1, width] that is zero behind its channels, to the place [1, 1] of a head."""
    kept = w.let(f"({token}).to({ELEMENTS[side.dtype]})", "kept")
    first = head.origin(w, place)
    d = w.let(f"tl.arange(0, {side.width})[None, :]", "d")
    inside = f"({place.mask}) & ({d} < {side.channels})"
    w(f"tl.store({side.ring(w, arguments, first, place.slot, d)}, {kept}, mask={inside})")
    kept = w.let(f"{kept}.to(tl.float32)", "kept")
    if isinstance(side, TailedValues):
        emit_value(w, arguments, side, kept, first, place)
        return
    done = w.let(f"({place.mask}) & (({place.slot} + 1) % {side.code.group} == 0)", "done")
    with w.block(f"if tl.max(tl.max({done}.to(tl.int32), 1), 0) > 0:"):
        group, number, slots = emit_group(w, side, place.slot)
        d = w.let(f"tl.arange(0, {side.width})[None, :]", "d")
        inside = f"({number} < {group - 1}) & ({d} < {side.channels})"
        ring = side.ring(w, arguments, first, slots, d)
        others = f"tl.load({ring}, mask={inside}, other=0.0).to(tl.float32)"
        tokens = w.let(f"tl.where({number} == {group - 1}, {kept}, {others})", "tokens")
        emit_keys(w, arguments, side, tokens, first, place.slot, (number, slots, d))


def emit_group(w: Writer, keys: TailedKeys, slot: str) -> tuple[int, str, str]:
    """(size, numbers [group, 1], slots [group, 1]) of the group whose last token is in a slot."""
    group = keys.code.group
    number = w.let(f"tl.arange(0, {group})[:, None]", "number")
    return group, number, w.let(f"{slot} + {1 - group} + {number}", "slots")


def emit_keys(
    w: Writer, arguments: Arguments, keys: TailedKeys, tokens: str, first: str, slot: str, names: tuple[str, str, str]
) -> None:
    """A group of keys, a float32 tile, whose last one is in a slot, channel by channel; `names` as in `emit_group`."""
    number, slots, d = names
    group, shape = keys.code.group, (keys.code.group, keys.width // (4 * keys.per), 4 * keys.per)
    grid = emit_grid(w, tokens, f"{number} >= 0", keys.code.bits, axis=0)
    place = f"({first} * {keys.groups(arguments)} + {slot} // {group}) * {keys.padded} + {d}"
    for name, value in (("scale", grid.step), ("zero", grid.low)):
        pointer = keys.pointer(arguments, f"k_{name}", "f16")
        w(f"tl.store({pointer} + {place}, {value}.to(tl.float16), mask={d} < {keys.channels})")
    codes = f"tl.reshape(tl.where({d} < {keys.channels}, {grid.code}, 0.0).to(tl.int32), {shape})"
    packed = w.let(f"tl.sum({codes} << {keys.shifts(w)}, 2)", "packed")
    target, word = keys.codes(w, arguments, first, slots)
    w(f"tl.store({target}, {packed}, mask={word} < {keys.words})")


def emit_value(w: Writer, arguments: Arguments, values: TailedValues, kept: str, first: str, place: Tokens) -> None:
    """The value `kept`, group by group of its channels."""
    group, count = values.code.group, values.width // values.code.group
    c = w.let(f"tl.arange(0, {count})[:, None]", "c")
    inside = f"({place.mask}) & ({c} < {values.groups})"
    grid = emit_grid(w, f"tl.reshape({kept}, ({count}, {group}))", f"{c} >= 0", values.code.bits)
    for name, value in (("scale", grid.step), ("zero", grid.low)):
        target = values.parameter(arguments, name, first, place.slot, c)
        w(f"tl.store({target}, {value}.to(tl.float16), mask={inside})")
    units = values.width // (values.per * BLOCK)
    codes = f"tl.reshape(tl.where({c} < {values.groups}, {grid.code}, 0.0).to(tl.int32), {(units, values.per, BLOCK)})"
    shift = w.let(f"(tl.arange(0, {values.per}) * {values.code.bits})[None, :, None]", "shift")
    packed = w.let(f"tl.sum({codes} << {shift}, 1)", "packed")
    e = w.let(f"tl.arange(0, {units})[:, None] * {BLOCK} + tl.arange(0, {BLOCK})[None, :]", "e")
    inside = f"({place.mask}) & ({e} < {values.bytes})"
    w(f"tl.store({values.codes(arguments, first, place.slot, e)}, {packed}.to(tl.uint8), mask={inside})")
