"""Writing tokens into the slots of a state: numbers as they are, or codes with their steps and lowest values.

Codes are made as `irx.runtime.kv_codes` and the oracle make them: `SymmetricBytes` and `TokenCodes`.
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.backends.triton.templates.attention_arguments import Arguments
from irx.backends.triton.templates.attention_places import Head, Tokens
from irx.backends.triton.templates.attention_storage import Slots
from irx.backends.triton.templates.rope import ROUNDING
from irx.backends.triton.writer import ELEMENTS, Writer
from irx.ops.precision import HALF_MAX, LEAST_STEP, RELATIVE_STEP


def emit_store(w: Writer, arguments: Arguments, slots: Slots, tokens: str, head: Head, place: Tokens) -> None:
    """Write a float32 tile [M, width], zero behind its channels, to the places [M, 1] of a head."""
    s, width = slots.storage, slots.width
    first, slot, mask = head.origin(w, place), place.slot, place.mask
    base = w.let(f"{slots.pointer(arguments)} + {first} * {s.elements}", "base")
    d = w.let(f"tl.arange(0, {width})[None, :]", "d")
    if not s.bits:
        element = tokens
    elif s.zeros:
        element = _token_codes(w, arguments, slots, tokens, d, first, slot, mask)
    else:
        element = _symmetric(w, arguments, slots, tokens, first, slot, mask)
    if s.bits == 4:
        element = _packed(w, slots, element)
        d = w.let(f"tl.arange(0, {width // 2})[None, :]", "d")
        width //= 2
    inside = mask if width == s.elements else f"{mask} & ({d} < {s.elements})"
    narrow = f"({element})" if not s.bits else f"({element}).to(tl.int32)"
    w(f"tl.store({base} + {s.element(slot, d)}, {narrow}.to({ELEMENTS[s.dtype]}), mask={inside})")


def _symmetric(w: Writer, arguments: Arguments, slots: Slots, tokens: str, first: str, slot: str, mask: str) -> str:
    most = w.let(f"tl.max(tl.abs({tokens}), 1, keep_dims=True)", "most")
    _parameter(w, arguments, slots, "scale", f"{most} * {1 / 127!r}", first, slot, mask)
    inverse = w.let(f"tl.where({most} > 0.0, 127.0 / tl.where({most} > 0.0, {most}, 1.0), 0.0)", "inverse")
    return w.let(f"{_nearest(f'{tokens} * {inverse}')} + {float(slots.storage.offset)}", "code")


def _token_codes(
    w: Writer, arguments: Arguments, slots: Slots, tokens: str, d: str, first: str, slot: str, mask: str
) -> str:
    inside = f"{d} < {slots.storage.channels}"
    grid = emit_grid(w, tokens, inside, slots.storage.bits)
    _parameter(w, arguments, slots, "scale", grid.step, first, slot, mask)
    _parameter(w, arguments, slots, "zero", grid.low, first, slot, mask)
    return w.let(f"tl.where({inside}, {grid.code}, 0.0)", "code")


@dataclass(frozen=True)
class Grid:
    """Names of a tile of codes [M, width], and of each row's (or column's) step and lowest value, all in float32."""

    code: str
    step: str
    low: str


def emit_grid(w: Writer, tokens: str, inside: str, bits: int, axis: int = 1) -> Grid:
    """Rows [M, width] (columns: axis 0) of a float32 tile as codes of their own grids; `inside` masks what counts."""
    top = float(2**bits - 1)
    tokens = w.let(f"tl.minimum(tl.maximum({tokens}, {-HALF_MAX}), {HALF_MAX})", "tokens")
    least = w.let(f"tl.min(tl.where({inside}, {tokens}, {HALF_MAX}), {axis}, keep_dims=True)", "least")
    most = w.let(f"tl.max(tl.where({inside}, {tokens}, {-HALF_MAX}), {axis}, keep_dims=True)", "most")
    low = w.let(_half(least), "low")
    low = w.let(f"tl.where({low} > {least}, {_half(f'{low} - {_next_half(low)}')}, {low})", "low")
    step = w.let(_half(f"(({most} - {low}) / {top})"), "step")
    larger = _half(f"({step} + {_next_half(step)})")
    step = w.let(f"tl.where({step} * {top} + {low} < {most}, {larger}, {step})", "step")
    step = w.let(f"tl.where({step} == 0.0, 1.0, {step})", "step")
    code = w.let(_nearest(f"({tokens} - {low}) * (1.0 / {step})"), "code")
    return Grid(w.let(f"tl.minimum(tl.maximum({code}, 0.0), {top})", "code"), step, low)


def _packed(w: Writer, slots: Slots, codes: str) -> str:
    """Two codes to a byte, those of channels `half` apart."""
    half, width = slots.storage.half, slots.width
    shape = f"({codes}.shape[0], {width // (2 * half)}, 2, {half})"
    pairs = w.let(f"tl.permute(tl.reshape({codes}, {shape}), (0, 1, 3, 2))", "pairs")
    low, high = w.fresh("low"), w.fresh("high")
    w(f"{low}, {high} = tl.split({pairs})")
    return w.let(f"tl.reshape({low} + 16.0 * {high}, ({codes}.shape[0], {width // 2}))", "bytes")


def _parameter(
    w: Writer, arguments: Arguments, slots: Slots, name: str, value: str, first: str, slot: str, mask: str
) -> None:
    pointer = slots.pointer(arguments, name)
    dtype = ELEMENTS[slots.storage.parameter]
    w(f"tl.store({pointer} + {first} + {slot}, ({value}).to({dtype}), mask={mask})")


def _nearest(value: str) -> str:
    """The nearest whole number, ties to even."""
    return f"({value} + {ROUNDING}) - {ROUNDING}"


def _half(value: str) -> str:
    """Rounded to float16, in float32."""
    clipped = f"tl.minimum(tl.maximum({value}, {-HALF_MAX}), {HALF_MAX})"
    return f"{clipped}.to(tl.float16).to(tl.float32)"


def _next_half(value: str) -> str:
    return f"(tl.abs({value}) * {RELATIVE_STEP!r} + {LEAST_STEP!r})"
