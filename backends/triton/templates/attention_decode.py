"""Attention of few queries: the tokens are divided among programs, and the last one to finish merges their results.

    my tokens = a share of those that any row sees
    [new tokens among them: rotated, written to their slots]
    q, rotated, against my tokens -> result and log-sum-exp -> [the last program: all results, weighted]

The grid does not depend on how many tokens there are, so that a captured step serves any length: shares are computed
from the positions, and programs without tokens end at once. (Dao et al. 2023, Flash-Decoding.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from irx.backends.regions.attention_region import Append, Result
from irx.backends.regions.lowered import Call, Data, Temporary
from irx.backends.regions.views import View
from irx.backends.triton.templates.append_element import emit_store
from irx.backends.triton.templates.attention_arguments import Arguments, Launch
from irx.backends.triton.templates.attention_logits import (
    LOWEST,
    Form,
    Queries,
    State,
    emit_result,
    emit_start,
    emit_tile,
)
from irx.backends.triton.templates.attention_places import Tokens
from irx.backends.triton.templates.attention_storage import Slots, sides, width_of
from irx.backends.triton.templates.rope import Place, emit_heads
from irx.backends.triton.writer import ELEMENTS, Writer
from irx.tuning import Choice

LEAST_ROWS = 16  # of an operand of tl.dot
MERGED = 4096  # elements of results that are merged at once
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


def decode_call(decode: Decode) -> Call:
    """The one kernel."""
    return _Decode(decode).call()


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
        w, d, window = self.w, self.decode, self.form.attend.window
        w("end = tl.max(tl.max(position, 1), 0) + 1")
        if window is None:
            w("begin = 0")
        else:
            w("earliest = tl.min(tl.min(tl.where(position < 0, end, position), 1), 0)")
            w(f"begin = tl.maximum(earliest - {window - 1}, 0) // {d.tokens} * {d.tokens}")
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
            for heads, slots in zip((append.k, append.v), sides(append.state, append.kv), strict=True):
                value = emit_heads(w, arguments, heads, Place(count, "b", "g", "fresh", "mine"), slots.width)
                emit_store(w, arguments, slots, value, slots.head(w, arguments, "b", "g"), Tokens("slot", "mine"))
        w("tl.debug_barrier()  # the threads read what others of them have written")

    def _attend(self) -> tuple[str, State]:
        w, form, arguments, d = self.w, self.form, self.arguments, self.decode
        keys, values = form.keys, form.values
        head = emit_heads(w, arguments, form.attend.q, Place(d.tile, "b", "h", "s", "mask"), keys.width)
        q = w.let(f"{head}.to({ELEMENTS[form.dtype]})", "q")
        q_sum = ""
        if isinstance(keys, Slots) and keys.storage.zeros:
            q_sum = w.let(f"tl.sum({q}.to(tl.float32), 1, keep_dims=True)", "q_sum")
        sinks = ""
        if form.attend.sinks is not None:
            table = arguments.tensor(form.attend.sinks)
            loaded = f"tl.load({table} + h, mask=mask, other=0.0).to(tl.float32)"
            sinks = w.let(f"tl.reshape({loaded}, ({d.tile},))", "sinks")
        state = emit_start(w, form, d.tile, sinks, "share == 0")
        heads = (keys.head(w, arguments, "b", "g"), values.head(w, arguments, "b", "g"))
        queries = Queries(q, q_sum, "position", "b", "h", "s", "mask")
        with w.block(f"for t in tl.range(start, stop, {d.tokens}):"):
            w(f"j = t + tl.arange(0, {d.tokens})")
            w("here = j < stop")
            emit_tile(w, arguments, form, queries, state, heads, Tokens("j", "here", "t", d.tokens))
        return emit_result(w, state), state

    def _finish(self, y: str, state: State) -> None:
        w, d = self.w, self.decode
        width, channels = self.form.values.width, self.result_size
        w(f"d = tl.arange(0, {width})[None, :]")
        if d.split == 1:
            self._store("h", "s", y, f"mask & (d < {channels})")
            return
        with w.block("if active <= 1:"):
            self._store("h", "s", y, f"mask & (d < {channels})")
        with w.block("if active > 1:"):
            self._leave(y, state)
            w('before = tl.atomic_add(arrived + unit, 1, sem="acq_rel")')
            with w.block("if before == active - 1:"):
                self._merge()
                w("tl.store(arrived + unit, 0)")

    @property
    def result_size(self) -> int:
        """Channels of a row of the result."""
        size = self.form.attend.q.size
        kv = self.form.attend.kv
        return size if kv is None else kv.v_dim

    def _leave(self, y: str, state: State) -> None:
        """This program's result and log-sum-exp, for the one that merges."""
        w, d = self.w, self.decode
        units = self.form.attend.q.view.shape[0] * self.form.groups
        results = Temporary("partial", units * d.split * d.rows * self.result_size * 4)
        self.arguments.pointer("partial", "f32", results)
        self.arguments.pointer("sums_of", "f32", Temporary("lse", units * d.split * d.rows * 4))
        self.arguments.pointer("arrived", "i32", Temporary("arrived", units * 4, zeroed=True))
        w(f"left = (unit * {d.split} + share) * {d.rows} + row")
        w(f"tl.store(partial + left.to(tl.int64) * {self.result_size} + d, {y}, mask=mask & (d < {self.result_size}))")
        w(f"some = {state.total} > 0.0")
        w(f"lse = tl.where(some, {state.top} + tl.log2(tl.where(some, {state.total}, 1.0)), {LOWEST})")
        w("tl.store(sums_of + left, lse[:, None], mask=mask)")
        w("tl.debug_barrier()  # all threads have written before one of them says so")

    def _merge(self) -> None:
        """Some rows at a time: results weighted by what they have seen."""
        w, d, size = self.w, self.decode, self.result_size
        rows = min(d.tile, max(1, MERGED // (d.split * self.form.values.width)))
        w(f"part = tl.arange(0, {d.split})[None, :]")
        with w.block(f"for first in range(0, {self.length} * {self.form.shared}, {rows}):"):
            w(f"r = first + tl.arange(0, {rows})[:, None]")
            w(f"wanted = r < {self.length} * {self.form.shared}")
            w(f"place = (unit * {d.split} + part) * {d.rows} + r")
            w("inside = (part < active) & wanted")
            w(f'lses = tl.load(sums_of + place, mask=inside, other={LOWEST}, cache_modifier=".cg")')
            w("weights = tl.exp2(lses - tl.max(lses, 1, keep_dims=True))")
            w("weights = weights / tl.sum(weights, 1, keep_dims=True)")
            w(f"each_d = tl.arange(0, {self.form.values.width})[None, None, :]")
            w(f"inside = inside[:, :, None] & (each_d < {size})")
            w(f"found = partial + place.to(tl.int64)[:, :, None] * {size} + each_d")
            w('found = tl.load(found, mask=inside, other=0.0, cache_modifier=".cg")')
            w("merged = tl.sum(found * weights[:, :, None], 1)")
            h, s = f"(g * {self.form.shared} + r % {self.form.shared})", f"(r // {self.form.shared})"
            self._store(h, s, "merged", f"wanted & (d < {size})", "r")

    def _store(self, h: str, s: str, value: str, mask: str, row: str = "row") -> None:
        result = self.decode.result
        shape = (*self.form.attend.q.view.shape[:3], self.result_size)
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
