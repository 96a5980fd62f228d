"""Attention of few queries: the tokens are divided among programs, and the last one to finish merges their results.

    my tokens = a share of those that any row sees
    [new tokens among them: rotated, written to their slots]
    q, rotated, against my tokens -> result and log-sum-exp -> [the last program: all results, weighted]

The grid does not depend on how many tokens there are, so that a captured step serves any length: shares are computed
from the positions, and programs without tokens end at once. (Dao et al. 2023, Flash-Decoding.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from irx.backends.regions.attention_region import Append, Result
from irx.backends.regions.lowered import Call, Data, Temporary
from irx.backends.regions.views import View
from irx.backends.triton.templates.append import emit_append
from irx.backends.triton.templates.attention_arguments import Arguments, Launch
from irx.backends.triton.templates.attention_logits import (
    Form,
    State,
    emit_queries,
    emit_result,
    emit_start,
    emit_tile,
)
from irx.backends.triton.templates.attention_partial import Partials
from irx.backends.triton.templates.attention_places import Tokens
from irx.backends.triton.templates.attention_prefix import Prefix, prefix_call, prefix_length
from irx.backends.triton.templates.attention_storage import width_of
from irx.backends.triton.templates.attention_tailed import TailedKeys, TailedValues
from irx.backends.triton.templates.rope import Place
from irx.backends.triton.writer import ELEMENTS, Writer
from irx.tuning import Choice

LEAST_ROWS = 16  # of an operand of tl.dot
KNOBS: Mapping[str, tuple[Choice, ...]] = {
    "tokens": (16, 32, 64, 128),
    "split": (1, 2, 4, 8, 16, 32, 64),
    "warps": (1, 2, 4, 8),
    "stages": (1, 2, 3, 4),
}
"""The values of every knob. Adding one leaves measured schedules valid."""


@dataclass(frozen=True)
class Decode:
    """An attention over a state of up to `most` queries in each row of the batch, with the append before it."""

    form: Form
    append: Append | None
    result: Result
    most: int
    tokens: int
    split: int
    warps: int
    stages: int

    @property
    def rows(self) -> int:
        """Queries of a program: those of all heads that share a KV head."""
        return self.form.shared * self.most

    @property
    def tile(self) -> int:
        """Rows of the tile that holds them."""
        return max(LEAST_ROWS, 1 << (self.rows - 1).bit_length())

    @property
    def prefix(self) -> bool:
        """Whether rows may begin with a prefix that they share."""
        kv = self.form.attend.kv
        return kv is not None and kv.prefix

    @property
    def partials(self) -> Partials:
        """What programs leave: `split` of own tokens, and as many of a prefix."""
        attend, parts = self.form.attend, self.split * (2 if self.prefix else 1)
        assert attend.kv is not None
        units = attend.q.view.shape[0] * self.form.groups
        return Partials(units, parts, self.rows, attend.kv.v_dim, self.form.values.width)


def decode_calls(decode: Decode) -> tuple[Call, ...]:
    """One kernel; before it, where rows may share a prefix, the one that reads that."""
    own = _Decode(decode).call()
    if not decode.prefix:
        return (own,)
    prefix = Prefix(decode.form, decode.partials, decode.tokens, decode.split, decode.warps, decode.stages)
    return prefix_call(prefix), own


@dataclass(frozen=True)
class Span:
    """Tokens that are read alike: from `first`, a multiple of a tile, to `last`, but none before `least`."""

    form: Form
    first: str
    last: str
    least: str = ""


class _Decode:
    def __init__(self, decode: Decode) -> None:
        self.decode = decode
        self.form = decode.form
        self.w = Writer()
        self.arguments = Arguments()

    def call(self) -> Call:
        w, d = self.w, self.decode
        attend = self.form.attend
        batch, _, length, _ = attend.q.view.shape
        self.length = self.arguments.size(length)
        self._rows()
        self._share()
        with w.block("if share < tl.maximum(active, 1):"):
            if d.append is not None:
                self._append(d.append)
            y, state = self._attend()
            self._finish(y, state)
        grid = (f"{self.arguments.size(batch)} * {self.form.groups}", str(d.split))
        note = f"{attend.q.count} heads of {attend.q.size} attend to {attend.kv}"
        return self.arguments.call("attention_decode", w, Launch(grid, d.warps, d.stages), note)

    def _rows(self) -> None:
        """b and g of the program; h, s, mask and position [M, 1] of its rows."""
        w, form = self.w, self.form
        w("unit = tl.program_id(0)")
        w("share = tl.program_id(1)")
        w(f"b = (unit // {form.groups}).to(tl.int64)")
        w(f"g = unit % {form.groups}")
        w(f"row = tl.arange(0, {self.decode.tile})[:, None]")
        w(f"s = row // {form.shared}" if self.decode.most > 1 else "s = row * 0")
        w(f"h = g * {form.shared} + row % {form.shared}")
        w(f"mask = row < {self.length} * {form.shared}")
        positions = form.attend.positions
        assert positions is not None
        place = self.arguments.index(positions, ("b", "s"))
        base = self.arguments.tensor(positions.base)
        w(f"position = tl.load({base} + {place} + s * 0, mask=mask, other=-1).to(tl.int32)")

    def _share(self) -> None:
        """The tokens [start, stop) of this program; `active` programs of the unit have some."""
        w, d, attend = self.w, self.decode, self.form.attend
        w("end = tl.max(tl.max(position, 1), 0) + 1")
        if attend.window is None or attend.first:
            w("begin = 0")
        else:
            w("earliest = tl.min(tl.min(tl.where(position < 0, end, position), 1), 0)")
            w(f"begin = tl.maximum(earliest - {attend.window - 1}, 0) // {d.tokens} * {d.tokens}")
        w(f"each = tl.cdiv(tl.cdiv(end - begin, {d.tokens}), {d.split})")
        w(f"active = tl.cdiv(tl.cdiv(end - begin, {d.tokens}), tl.maximum(each, 1))")
        w(f"start = begin + share * each * {d.tokens}")
        w(f"stop = tl.minimum(start + each * {d.tokens}, end)")

    def _append(self, append: Append) -> None:
        """The new tokens that belong to this program's slots; nobody else reads them."""
        w, arguments = self.w, self.arguments
        count = 1 << (self.decode.most - 1).bit_length()
        w(f"fresh = tl.arange(0, {count})[:, None]")
        place = arguments.index(append.positions, ("b", "fresh"))
        base = arguments.tensor(append.positions.base)
        w(f"slot = tl.load({base} + {place} + fresh * 0, mask=fresh < {self.length}, other=-1).to(tl.int32)")
        w("mine = (slot >= start) & (slot < stop)")
        with w.block("if tl.max(tl.max(mine.to(tl.int32), 1), 0) > 0:"):
            for part in range(2):
                emit_append(w, arguments, append, part, Place(count, "b", "g", "fresh", "mine"), Tokens("slot", "mine"))
        w("tl.debug_barrier()  # the threads read what others of them have written")

    def _attend(self) -> tuple[str, State]:
        w, form, arguments, d = self.w, self.form, self.arguments, self.decode
        queries = emit_queries(w, arguments, form, d.tile)
        sinks = ""
        if form.attend.sinks is not None:
            table = arguments.tensor(form.attend.sinks)
            loaded = f"tl.load({table} + h, mask=mask, other=0.0).to(tl.float32)"
            sinks = w.let(f"tl.reshape({loaded}, ({d.tile},))", "sinks")
        state = emit_start(w, form, d.tile, sinks, "share == 0")
        for span in self._spans():
            heads = (span.form.keys.head(w, arguments, "b", "g"), span.form.values.head(w, arguments, "b", "g"))
            with w.block(f"for t in tl.range({span.first}, {span.last}, {d.tokens}):"):
                w(f"j = t + tl.arange(0, {d.tokens})")
                w(f"here = (j >= {span.least}) & (j < {span.last})" if span.least else f"here = j < {span.last}")
                emit_tile(w, arguments, span.form, queries, state, heads, Tokens("j", "here", "t", d.tokens))
        return emit_result(w, state), state

    def _spans(self) -> tuple[Span, ...]:
        """The program's tokens; in a state with a tail what the one query sees as codes, and what as it is."""
        w, form, keys, values = self.w, self.form, self.form.keys, self.form.values
        if not isinstance(keys, TailedKeys) or not isinstance(values, TailedValues):
            return (Span(form, "start", "stop"),)
        tail, tile = keys.code.tail, self.decode.tokens
        w(f"coded_keys = tl.maximum(end - 1, 0) // {tail} * {tail}")
        w(f"coded_values = tl.maximum(end - {tail}, 0)")
        w("last_value = tl.minimum(stop, coded_values)")
        w(f"first_value = tl.maximum(start, coded_values // {tile} * {tile})")
        w("last_key = tl.minimum(stop, coded_keys)")
        w(f"first_key = tl.maximum(start, coded_keys // {tile} * {tile})")
        mixed = replace(form, values=replace(values, recent=True))
        return (
            Span(form, "start", "last_value"),
            Span(mixed, "first_value", "last_key", "coded_values"),
            Span(replace(mixed, keys=replace(keys, recent=True)), "first_key", "stop", "coded_keys"),
        )

    def _finish(self, y: str, state: State) -> None:
        w, d, parts = self.w, self.decode, self.decode.partials
        w(f"d = tl.arange(0, {parts.width})[None, :]")
        others = self._others()
        if d.split == 1 and not others:
            self._store("row", y, f"mask & (d < {parts.channels})")
            return
        alone = "(active <= 1) & (others == 0)" if others else "active <= 1"
        with w.block(f"if {alone}:"):
            self._store("row", y, f"mask & (d < {parts.channels})")
        with w.block("if (active > 1) | (others > 0):" if others else "if active > 1:"):
            self._leave(y, state)
            last = "tl.maximum(active, 1) - 1" if others else "active - 1"
            w('before = tl.atomic_add(arrived + unit, 1, sem="acq_rel")')
            with w.block(f"if before == {last}:"):
                self._merge(others)
                w("tl.store(arrived + unit, 0)")

    def _others(self) -> str:
        """The text of which parts a kernel before this one has left, of a prefix; `others` is how many."""
        w, d = self.w, self.decode
        if not d.prefix:
            return ""
        end = prefix_length(self.arguments, self.form)
        w(f"of_others = tl.cdiv({end}, {d.tokens})")
        w(f"others = tl.cdiv(of_others, tl.maximum(tl.cdiv(of_others, {d.split}), 1))")
        return f" | (part >= {d.split}) & (part < {d.split} + others)"

    def _leave(self, y: str, state: State) -> None:
        """This program's result and log-sum-exp, for the one that merges."""
        w, d, parts = self.w, self.decode, self.decode.partials
        self.arguments.pointer("arrived", "i32", Temporary("arrived", parts.units * 4, zeroed=True))
        parts.leave(w, self.arguments, f"(unit * {parts.parts} + share) * {d.rows} + row", y, state, "mask")
        w("tl.debug_barrier()  # all threads have written before one of them says so")

    def _merge(self, others: str) -> None:
        used, count = f"(part < active){others}" if others else "part < active", f"{self.length} * {self.form.shared}"
        self.decode.partials.merge(self.w, count, used, self.decode.tile, self._store)

    def _store(self, row: str, value: str, mask: str) -> None:
        result, form = self.decode.result, self.form
        h, s = (
            ("h", "s")
            if row == "row"
            else (f"(g * {form.shared} + {row} % {form.shared})", f"({row} // {form.shared})")
        )
        shape = (*form.attend.q.view.shape[:3], self.decode.partials.channels)
        first = self.arguments.index(View(result.value, shape, result.strides), ("b", h, s))
        out = self.arguments.pointer("out", result.value.dtype, Data(result.value))
        self.w(f"tl.store({out} + {first} + {row} * 0 + d, ({value}).to({ELEMENTS[result.value.dtype]}), mask={mask})")


def defaults(cores: int, groups: int, channels: int, item: int) -> dict[str, Choice]:
    """The schedule without measurements: up to four programs for each multiprocessor, tiles of some 16 KiB."""
    wide = width_of(channels) * item
    tokens = max(16, min(64, 16384 // wide))
    split = 1 << max(0, (4 * cores // groups).bit_length() - 1)
    warps = 8 if wide >= 1024 else 4
    return {"tokens": tokens, "split": min(split, 64 if wide <= 128 else 32), "warps": warps, "stages": 2}
