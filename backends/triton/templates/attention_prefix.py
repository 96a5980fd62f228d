"""Attention to a prefix that all rows of a batch share: its tokens are read once for the queries of all of them.

    a share of the prefix's tokens -> queries of a KV head, up to 64 of them beside each other -> result, log-sum-exp

Kernels of decoding join what is left here with what each row sees of its own. (Juravsky et al. 2024, Hydragen,
arXiv:2402.05099.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from irx.backends.regions.lowered import Call, Capacity
from irx.backends.triton.templates.attention_arguments import Arguments, Launch
from irx.backends.triton.templates.attention_logits import (
    Form,
    emit_queries,
    emit_result,
    emit_start,
    emit_tile,
)
from irx.backends.triton.templates.attention_partial import Partials
from irx.backends.triton.templates.attention_places import Tokens
from irx.backends.triton.templates.attention_storage import Slots
from irx.backends.triton.writer import Writer

ROWS = 64  # of the queries that meet a tile of the prefix at once
WIDEST = 128  # channels; of wider heads, and in float32, fewer queries meet it, for want of registers
EVERYWHERE = 1 << 30  # a position that sees all tokens of a prefix


@dataclass(frozen=True)
class Prefix:
    """An attention to a prefix, whose tokens are divided among `split` programs: parts of `partials` from there on."""

    form: Form
    partials: Partials
    tokens: int
    split: int
    warps: int
    stages: int

    @property
    def tile(self) -> int:
        """Rows of a tile of queries."""
        return ROWS if self._width <= WIDEST and self.form.dtype != "f32" else ROWS // 4

    @property
    def threads(self) -> int:
        """Warps of a program: enough for the registers that a tile takes."""
        return max(self.warps, 8) if self.tile * self._width > 4096 else self.warps

    @property
    def _width(self) -> int:
        return max(self.form.keys.width, self.form.values.width)


def of_prefix(form: Form) -> Form:
    """The same attention, to the prefix of the state."""
    sides = (form.keys, form.values)
    assert isinstance(sides[0], Slots) and isinstance(sides[1], Slots)
    keys, values = (replace(side, room=side.room.of_prefix()) for side in sides if isinstance(side, Slots))
    return replace(form, keys=keys, values=values)


def prefix_length(arguments: Arguments, form: Form) -> str:
    """How many tokens the prefix has."""
    state = form.attend.state
    assert state is not None
    return arguments.number("prefix_length", Capacity(state, "prefix_length"))


def prefix_call(prefix: Prefix) -> Call:
    """The one kernel."""
    w, arguments, form = Writer(), Arguments(), of_prefix(prefix.form)
    attend, split = form.attend, prefix.split
    batch, _, length, _ = attend.q.view.shape
    rows = arguments.size(batch * length * form.shared)
    w("g = tl.program_id(1)")
    w("share = tl.program_id(2)")
    end = prefix_length(arguments, form)
    w(f"each = tl.cdiv(tl.cdiv({end}, {prefix.tokens}), {split})")
    w(f"start = share * each * {prefix.tokens}")
    w(f"stop = tl.minimum(start + each * {prefix.tokens}, {end})")
    with w.block("if start < stop:"):
        _rows(w, arguments, prefix, rows)
        queries = emit_queries(w, arguments, form, prefix.tile)
        state = emit_start(w, form, prefix.tile)
        heads = (form.keys.head(w, arguments, "b", "g"), form.values.head(w, arguments, "b", "g"))
        with w.block(f"for t in tl.range(start, stop, {prefix.tokens}):"):
            w(f"j = t + tl.arange(0, {prefix.tokens})")
            w("here = j < stop")
            emit_tile(w, arguments, form, queries, state, heads, Tokens("j", "here", "t", prefix.tokens))
        y = emit_result(w, state)
        w(f"d = tl.arange(0, {form.values.width})[None, :]")
        part = f"((b * {form.groups} + g) * {prefix.partials.parts} + {split} + share)"
        left = f"{part} * {prefix.partials.rows} + s * {form.shared} + row % {form.shared}"
        prefix.partials.leave(w, arguments, left, y, state, "mask")
    grid = (f"ceil({rows}, {prefix.tile})", str(form.groups), str(split))
    note = f"{attend.q.count} heads of {attend.q.size} of all rows attend to the prefix of {attend.kv}"
    return arguments.call("attention_prefix", w, Launch(grid, prefix.threads, prefix.stages), note)


def _rows(w: Writer, arguments: Arguments, prefix: Prefix, rows: str) -> None:
    """b, h, s, mask and position [M, 1] of the program's rows: the queries of head g of all rows of the batch."""
    form = prefix.form
    positions = form.attend.positions
    assert positions is not None
    length = arguments.size(form.attend.q.view.shape[2])
    w(f"row = tl.program_id(0) * {prefix.tile} + tl.arange(0, {prefix.tile})[:, None]")
    w(f"b = (row // ({length} * {form.shared})).to(tl.int64)")
    w(f"s = row // {form.shared} % {length}")
    w(f"h = g * {form.shared} + row % {form.shared}")
    w(f"mask = row < {rows}")
    place = f"{arguments.index(positions, ('b', 's'))} + row * 0"
    w(f"own = tl.load({arguments.tensor(positions.base)} + {place}, mask=mask, other=-1).to(tl.int32)")
    w(f"position = tl.where(own < 0, -1, {EVERYWHERE})")
