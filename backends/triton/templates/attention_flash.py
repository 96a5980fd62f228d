"""Attention of many queries: a program takes a block of rows of one head and goes through the tokens they see.

    q, rotated -> tokens that all rows see: no masks -> tokens that some rows see -> result

Over a state rows see by their positions, in a plain attention by their numbers; what nobody in the block sees is never
loaded. The last blocks, which see the most tokens, start first. (Dao et al. 2022, arXiv:2205.14135.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from irx.backends.regions.attention_region import Heads, Result
from irx.backends.regions.lowered import Call, Data, Temporary
from irx.backends.regions.views import View, row_major
from irx.backends.triton.templates.attention_arguments import Arguments, Launch
from irx.backends.triton.templates.attention_logits import (
    Form,
    Queries,
    State,
    emit_queries,
    emit_result,
    emit_start,
    emit_tile,
)
from irx.backends.triton.templates.attention_mixed import emit_mixed_tile
from irx.backends.triton.templates.attention_places import Tokens
from irx.backends.triton.templates.attention_prefix import of_prefix, prefix_length
from irx.backends.triton.templates.attention_storage import Slots, width_of
from irx.backends.triton.templates.attention_tailed import TailedKeys
from irx.backends.triton.writer import ELEMENTS, Writer
from irx.ir.dims import Dim
from irx.tuning import Choice

KNOBS: Mapping[str, tuple[Choice, ...]] = {
    "queries": (16, 32, 64, 128),
    "tokens": (16, 32, 64, 128),
    "warps": (1, 2, 4, 8),
    "stages": (1, 2, 3, 4),
}
"""The values of every knob. Adding one leaves measured schedules valid."""


@dataclass(frozen=True)
class Flash:
    """An attention in blocks of `queries` rows. `keys` are the tokens of a plain attention, None over a state.

    Where `prepared`, the queries are there, normalised and rotated: [B, H, S, D].
    """

    form: Form
    result: Result
    keys: Dim | None
    prepared: Temporary | None
    queries: int
    tokens: int
    warps: int
    stages: int


def flash_call(flash: Flash) -> Call:
    """The one kernel."""
    return _Flash(flash).call()


class _Flash:
    def __init__(self, flash: Flash) -> None:
        self.flash = flash
        self.form = flash.form
        self.attend = flash.form.attend
        self.w = Writer()
        self.arguments = Arguments()

    def call(self) -> Call:
        w, f, attend = self.w, self.flash, self.attend
        batch, heads, length, _ = attend.q.view.shape
        self.length = self.arguments.size(length)
        self._rows()
        self._range()
        queries = self._queries()
        sinks = ""
        if attend.sinks is not None:
            sink = f"tl.load({self.arguments.tensor(attend.sinks)} + h).to(tl.float32)"
            sinks = w.let(f"{sink} + tl.zeros(({f.queries},), tl.float32)", "sinks")
        state = emit_start(w, self.form, f.queries, sinks, "h >= 0")
        if attend.kv is not None and attend.kv.prefix:
            self._prefix(queries, state)
        if isinstance(self.form.keys, TailedKeys) and self.form.keys.fresh is not None:
            self.form.keys.fresh.emit_shift(w, self.arguments)
        before = () if attend.window is None else (("begin", "open", True),)
        first = (("0", "leading", True),) if attend.first else ()
        ranges = (*first, *before, ("open", "closed", False), ("closed", "end", True))
        self._tiles(self.form, queries, state, ranges, "end")
        self._store(emit_result(w, state))
        grid = (f"ceil({self.length}, {f.queries})", str(heads), self.arguments.size(batch))
        note = f"{heads} heads of {attend.q.size} attend to {attend.kv or 'keys and values of their own'}"
        return self.arguments.call("attention_flash", w, Launch(grid, f.warps, f.stages), note)

    def _prefix(self, queries: Queries, state: State) -> None:
        """What all rows of the batch share, and see all of."""
        w, f, end = self.w, self.flash, prefix_length(self.arguments, self.form)
        w(f"whole = {end} // {f.tokens} * {f.tokens}")
        queries = replace(queries, position=w.let(f"position * 0 + {end}", "reach"))
        ranges = (("0", "whole", False), ("whole", end, True))
        self._tiles(of_prefix(self.form), queries, state, ranges, end)

    def _tiles(
        self, form: Form, queries: Queries, state: State, ranges: Sequence[tuple[str, str, bool]], end: str
    ) -> None:
        """Tokens of ranges (first, last, masked) before `end`."""
        w, arguments, count = self.w, self.arguments, self.flash.tokens
        ends = (form.keys.head(w, arguments, "b", "g"), form.values.head(w, arguments, "b", "g"))
        for first, last, masked in ranges:
            with w.block(f"for t in tl.range({first}, {last}, {count}):"):
                w(f"j = t + tl.arange(0, {count})")
                w(f"here = j < {end}")
                tokens = Tokens("j", "here", "t", count)
                if masked and isinstance(form.keys, TailedKeys):
                    emit_mixed_tile(w, arguments, form, queries, state, ends, tokens)
                else:
                    emit_tile(w, arguments, form, queries, state, ends, tokens, masked)

    def _rows(self) -> None:
        """b, h and g of the program; s, mask and position [M, 1] of its rows, those that see most first."""
        w, f = self.w, self.flash
        w("b = tl.program_id(2).to(tl.int64)")
        w("h = tl.program_id(1)")
        w(f"g = h // {self.form.shared}")
        w(f"s = (tl.num_programs(0) - 1 - tl.program_id(0)) * {f.queries} + tl.arange(0, {f.queries})[:, None]")
        w(f"mask = s < {self.length}")
        positions = self.attend.positions
        if positions is None:
            w("position = s")
            return
        place = self.arguments.index(positions, ("b", "s"))
        base = self.arguments.tensor(positions.base)
        w(f"found = tl.load({base} + {place} + s * 0, mask=mask, other=-1).to(tl.int32)")
        w("latest = tl.max(tl.max(found, 1), 0)")
        w("position = tl.where(found < 0, latest, found)")

    def _range(self) -> None:
        """Tokens before `leading` and in [begin, end) are seen by some row, [open, closed) in whole tiles by all."""
        w, f, attend = self.w, self.flash, self.attend
        if f.keys is not None:
            keys = self.arguments.size(f.keys)
            w("latest = tl.max(tl.max(position, 1), 0)")
            w(f"end = tl.minimum(latest + 1, {keys})" if attend.causal else f"end = {keys} + latest * 0")
        else:
            w("end = latest + 1")
        w("earliest = tl.min(tl.min(position, 1), 0)")
        w("begin = 0")
        w("open = 0")
        if attend.window is not None:
            w(f"begin = tl.maximum(earliest - {attend.window - 1}, 0) // {f.tokens} * {f.tokens}")
            if attend.first:
                w(f"leading = tl.minimum({-(-attend.first // f.tokens) * f.tokens}, begin)")
            whole = (
                f"tl.cdiv(tl.maximum(tl.max(tl.max(position, 1), 0) - {attend.window - 1}, 0), {f.tokens}) * {f.tokens}"
            )
            w(f"open = tl.maximum(tl.minimum({whole}, end // {f.tokens} * {f.tokens}), begin)")
        shared = "tl.minimum(earliest + 1, end)" if attend.causal else "end"
        if isinstance(self.form.keys, TailedKeys):  # tokens that all rows see as codes, keys and values
            shared = f"tl.maximum(earliest + {1 - self.form.keys.code.tail}, 0)"
        w(f"closed = tl.maximum({shared} // {f.tokens} * {f.tokens}, open)")

    def _queries(self) -> Queries:
        w, heads, prepared, source = self.w, self.attend.q, self.flash.prepared, ""
        if prepared is not None:
            shape = (*heads.view.shape[:3], heads.size)
            source = self.arguments.pointer("prepared", heads.dtype, prepared)
            heads = Heads(View(heads.view.base, shape, row_major(shape)))
        return emit_queries(w, self.arguments, self.form, self.flash.queries, heads, source)

    def _store(self, y: str) -> None:
        w, result = self.w, self.flash.result
        size = result_channels(self.form)
        w(f"d = tl.arange(0, {self.form.values.width})[None, :]")
        if self.attend.positions is not None:
            y = w.let(f"tl.where(found < 0, 0.0, {y})", "y")
        shape = (*self.attend.q.view.shape[:3], size)
        first = self.arguments.index(View(result.value, shape, result.strides), ("b", "h", "s"))
        out = self.arguments.pointer("out", result.value.dtype, Data(result.value))
        stored = f"({y}).to({ELEMENTS[result.value.dtype]})"
        w(f"tl.store({out} + {first} + s * 0 + d, {stored}, mask=mask & (d < {size}))")


def result_channels(form: Form) -> int:
    """Channels of a row of the result."""
    values = form.values
    return values.storage.channels if isinstance(values, Slots) else values.channels


def defaults(key_channels: int, value_channels: int, item: int, coded: bool) -> dict[str, Choice]:
    """The schedule without measurements: blocks whose tiles fit the registers of every generation."""
    wide = max(width_of(key_channels), width_of(value_channels))
    if item == 4:
        tile = {"queries": 64, "tokens": 32, "warps": 4} if wide <= 64 else {"queries": 16, "tokens": 16, "warps": 8}
        return {**tile, "stages": 1}
    padded = not key_channels == value_channels == wide
    queries = 128 if wide <= 128 else 64 if wide <= 256 else 32
    tokens = 64 if wide <= 64 or (wide <= 128 and not coded and not padded) else 32
    return {"queries": queries, "tokens": tokens, "warps": 8, "stages": 2 if wide <= 256 else 1}


def mixed_defaults(key_channels: int, value_channels: int, item: int) -> dict[str, Choice]:
    """That of codes with a tail, where tokens are read as codes and as they are: half the registers are theirs."""
    wide = max(width_of(key_channels), width_of(value_channels))
    tile = {"queries": 16, "tokens": 16} if item == 4 else {"queries": 32, "tokens": 32}
    return {**tile, "warps": 4 if wide <= 64 else 8, "stages": 1}
