"""A tile of keys and values in an attention: logits, what is added to them, what is not seen, the running softmax.

Logits are powers of two: exp(x) = 2^(x log2(e)). The running maximum begins at a finite number, so that a row that has
seen nothing yet keeps a sum of 0 instead of a NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from irx.backends.regions.attention_region import Attend, Heads
from irx.backends.regions.views import View
from irx.backends.triton.functions import tanh
from irx.backends.triton.templates.attention_arguments import Arguments
from irx.backends.triton.templates.attention_places import Head, Tokens
from irx.backends.triton.templates.attention_storage import Rows, Slots
from irx.backends.triton.templates.attention_tailed import TailedKeys, TailedValues
from irx.backends.triton.templates.rope import Place, emit_heads
from irx.backends.triton.writer import ELEMENTS, Writer

LOG2_E = math.log2(math.e)
LOWEST = -1.0e30  # below every logit, and finite


@dataclass(frozen=True)
class Form:
    """What is computed: the attention, where its keys and values are, and the dtype that products are made in."""

    attend: Attend
    keys: Slots | Rows | TailedKeys
    values: Slots | Rows | TailedValues
    groups: int
    dtype: str

    @property
    def shared(self) -> int:
        """Query heads of a KV head."""
        return self.attend.q.count // self.groups

    @property
    def precision(self) -> str:
        """How products of float32 are made: in three parts of fewer bits, which lose nothing that a sum keeps."""
        return ', input_precision="tf32x3"' if self.dtype == "f32" else ""


@dataclass(frozen=True)
class Queries:
    """Names in a kernel, of a tile of M queries: `q` [M, width] in the dtype of products, `position` and `h` [M, 1] (or
    a scalar h), `total` (of q, [M, 1], where keys are codes); b; and for masks `s`, the row, with `mask` where there is
    one."""

    q: str
    q_sum: str
    position: str
    b: str
    h: str
    s: str
    mask: str


@dataclass(frozen=True)
class State:
    """Names of the running maximum and sum [M], weighted values [M, width], and, of codes, lowest ones [M]."""

    top: str
    total: str
    sums: str
    lowest: str


def emit_queries(
    w: Writer, arguments: Arguments, form: Form, rows: int, heads: Heads | None = None, source: str = ""
) -> Queries:
    """The tile of queries of `rows`, whose b, h, s, mask and position the kernel has named so.

    They are `heads`, in the parameter `source`, or else those of the attention.
    """
    keys = form.keys
    head = emit_heads(w, arguments, heads or form.attend.q, Place(rows, "b", "h", "s", "mask"), keys.width, source)
    q, q_sum = w.let(f"{head}.to({ELEMENTS[form.dtype]})", "q"), ""
    if isinstance(keys, Slots) and keys.storage.zeros:
        q_sum = w.let(f"tl.sum({q}.to(tl.float32), 1, keep_dims=True)", "q_sum")
    return Queries(q, q_sum, "position", "b", "h", "s", "mask")


def emit_start(w: Writer, form: Form, rows: int, sinks: str = "", counted: str = "") -> State:
    """The state before any key. `sinks` [M] are logits that take weight where `counted`, a scalar, is true."""
    state = State("top", "total", "sums", "lowest" if _has_zeros(form.values) else "")
    if sinks:
        w(f"{state.top} = tl.where({counted}, {sinks} * {LOG2_E!r}, {LOWEST})")
        w(f"{state.total} = tl.where({counted}, tl.full(({rows},), 1.0, tl.float32), 0.0)")
    else:
        w(f"{state.top} = tl.full(({rows},), {LOWEST}, tl.float32)")
        w(f"{state.total} = tl.zeros(({rows},), tl.float32)")
    w(f"{state.sums} = tl.zeros(({rows}, {form.values.width}), tl.float32)")
    if state.lowest:
        w(f"{state.lowest} = tl.zeros(({rows},), tl.float32)")
    return state


def emit_tile(
    w: Writer, arguments: Arguments, form: Form, queries: Queries, state: State, heads: tuple[Head, Head],
    tokens: Tokens, masked: bool = True,
) -> None:  # fmt: skip
    """Take tokens [T] into the state, of `heads` of keys and of values. Not `masked`: all rows see all of them."""
    logits = emit_logits(w, arguments, form, queries, heads[0], tokens)
    if masked or form.attend.mask is not None:
        seen = emit_seen(w, arguments, form, queries, tokens, masked)
        logits = w.let(f"tl.where({seen}, {logits}, -float('inf'))", "x")
    top = w.let(f"tl.maximum({state.top}, tl.max({logits}, 1))", "top")
    weights = w.let(f"tl.exp2({logits} - {top}[:, None])", "p")
    shrink = w.let(f"tl.exp2({state.top} - {top})", "shrink")
    w(f"{state.total} = {state.total} * {shrink} + tl.sum({weights}, 1)")
    _add_values(w, arguments, form, state, heads[1], tokens, weights, shrink)
    w(f"{state.top} = {top}")


def emit_logits(w: Writer, arguments: Arguments, form: Form, queries: Queries, head: Head, tokens: Tokens) -> str:
    """The logits [M, T] of tokens, times log2(e), biases included."""
    attend, keys = form.attend, form.keys
    tile = keys.tile(w, arguments, head, tokens, form.dtype)
    x = w.let(f"tl.dot({queries.q}, tl.trans({tile}){form.precision})", "x")
    if isinstance(keys, Slots) and keys.storage.bits:
        scale = keys.values(w, arguments, "scale", head, tokens)
        x = f"{x} * {scale}[None, :]"
        if keys.storage.zeros:
            zero = keys.values(w, arguments, "zero", head, tokens)
            x = f"{x} + {queries.q_sum} * {zero}[None, :]"
        x = w.let(x, "x")
    if attend.softcap is None:
        x = w.let(f"{x} * {attend.scale * LOG2_E!r}", "x")
    else:
        x = w.let(f"{x} * {attend.scale / attend.softcap!r}", "x")
        x = w.let(f"{attend.softcap * LOG2_E!r} * {tanh(w, x)}", "x")
    for bias in _biases(w, arguments, form, queries, tokens):
        x = w.let(f"{x} + {bias} * {LOG2_E!r}", "x")
    return x


def _biases(w: Writer, arguments: Arguments, form: Form, queries: Queries, tokens: Tokens) -> list[str]:
    """What is added to logits, [M, T]."""
    attend, found = form.attend, []
    if attend.table is not None:
        length = attend.table.shape[1]
        distance = f"tl.minimum(tl.maximum({queries.position} - {tokens.slot}[None, :], 0), {length} - 1)"
        table = arguments.tensor(attend.table)
        found.append(f"tl.load({table} + {queries.h} * {length} + {distance}).to(tl.float32)")
    if attend.bias is not None:
        found.append(_added(w, arguments, attend.bias, queries, tokens))
    return found


def _added(w: Writer, arguments: Arguments, view: View, queries: Queries, tokens: Tokens) -> str:
    place = arguments.index(view, (queries.b, queries.h, queries.s, f"{tokens.slot}[None, :]"))
    inside = f"{queries.mask} & {tokens.mask}[None, :]"
    return f"tl.load({arguments.tensor(view.base)} + {place}, mask={inside}, other=0).to(tl.float32)"


def emit_seen(w: Writer, arguments: Arguments, form: Form, queries: Queries, tokens: Tokens, masked: bool) -> str:
    """Where a query sees a token, [M, T]."""
    attend, token, parts = form.attend, tokens.slot, []
    if masked:
        parts.append(f"{tokens.mask}[None, :]")
        if attend.causal:
            parts.append(f"({token}[None, :] <= {queries.position})")
        if attend.window is not None:
            near = f"({queries.position} - {token}[None, :] < {attend.window})"
            parts.append(f"({near} | ({token}[None, :] < {attend.first}))" if attend.first else near)
    if attend.mask is not None:
        parts.append(f"({_added(w, arguments, attend.mask, queries, tokens)} != 0.0)")
    return " & ".join(parts)


def _add_values(
    w: Writer, arguments: Arguments, form: Form, state: State, head: Head, tokens: Tokens, weights: str, shrink: str
) -> None:  # fmt: skip
    values = form.values
    tile = values.tile(w, arguments, head, tokens, form.dtype)
    factor = ""
    if isinstance(values, Slots) and values.storage.bits:
        scale = values.values(w, arguments, "scale", head, tokens)
        if values.storage.zeros:
            zero = values.values(w, arguments, "zero", head, tokens)
            w(f"{state.lowest} = {state.lowest} * {shrink} + tl.sum({weights} * {zero}[None, :], 1)")
        if form.dtype == "f16":  # which has no small numbers: steps are taken relative to the largest
            largest = w.let(f"tl.maximum(tl.max({scale}, 0), 1e-30)", "largest")
            scale, factor = w.let(f"{scale} / {largest}", "scale"), f" * {largest}"
        weights = w.let(f"{weights} * {scale}[None, :]", "p")
    product = f"tl.dot({weights}.to({ELEMENTS[form.dtype]}), {tile}{form.precision})"
    w(f"{state.sums} = {state.sums} * {shrink}[:, None] + {product}{factor}")


def emit_result(w: Writer, state: State) -> str:
    """The attention's result [M, width]: 0 in rows that have seen nothing."""
    sums = f"({state.sums} + {state.lowest}[:, None])" if state.lowest else state.sums
    return w.let(f"{sums} / tl.where({state.total} > 0.0, {state.total}, 1.0)[:, None]", "y")


def _has_zeros(values: Slots | Rows | TailedValues) -> bool:
    return isinstance(values, Slots) and values.storage.zeros
