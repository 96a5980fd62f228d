"""Attention with its log-sum-exp, and the attention that keys get: for the few rows that choose tokens.

Both work on numbers rather than on matrix instructions: a program of the first takes one query row of one head through
all tokens, one of the second a block of tokens through all rows of the heads that share them.
"""

from __future__ import annotations

from irx.backends.regions.lowered import Call, Refusal
from irx.backends.regions.views import View, row_major
from irx.backends.triton.functions import tanh
from irx.backends.triton.templates.attention_arguments import Arguments, Launch
from irx.backends.triton.templates.attention_logits import LOWEST
from irx.backends.triton.templates.attention_storage import width_of
from irx.backends.triton.templates.token_elements import pointers
from irx.backends.triton.writer import Writer, loaded
from irx.ir.graph import Node, Value

TILE = 64  # tokens at once
LARGEST_HEAD = 256


class _Shape:
    """The sizes of both ops, as numbers and texts of parameters."""

    def __init__(self, node: Node, arguments: Arguments) -> None:
        self.node = node
        self.q, self.k = _needed(node, "q"), _needed(node, "k")
        batch, heads, rows, channels = self.q.shape
        _, groups, tokens, _ = self.k.shape
        if not isinstance(heads, int) or not isinstance(groups, int) or not isinstance(channels, int):
            raise Refusal(f"{node.op.name} of {self.q.type}")
        if channels > LARGEST_HEAD:
            raise Refusal(f"heads of more than {LARGEST_HEAD} channels")
        self.heads, self.groups, self.channels = heads, groups, channels
        self.shared, self.width = heads // groups, width_of(channels)
        self.batch, self.rows, self.tokens = (arguments.size(n) for n in (batch, rows, tokens))

    def keys(self, w: Writer, arguments: Arguments) -> None:
        """Names `d` [1, width], `key` [TILE, width]: the tokens `j`, of which those `here` are there."""
        pointers(arguments, k=self.k)
        w(f"first = (b * {self.groups} + g).to(tl.int64) * {self.tokens}")
        w(f"keys = (first + j)[:, None] * {self.channels} + d")
        key = loaded("k", "keys", self.k.dtype, f"here[:, None] & (d < {self.channels})")
        w(f"key = {key}")

    def logits(self, w: Writer, q: str) -> str:
        """The logits [TILE] of a row q [1, width], scaled."""
        return w.let(f"tl.sum({q} * key, 1) * {float(str(self.node.attr('scale')))!r}", "x")

    def query(self, w: Writer, row: str) -> str:
        """Row `row` of q as [1, width]."""
        mask = f"d < {self.channels}"
        return w.load("q", f"({row}).to(tl.int64) * {self.channels} + d", self.q.dtype, mask)


def lse_calls(node: Node) -> tuple[Call, ...]:
    """`attention_lse`."""
    arguments, w = Arguments(), Writer()
    shape = _Shape(node, arguments)
    out, lse = node.outputs
    _, v, _, _ = pointers(arguments, q=shape.q, v=_needed(node, "v"), out=out, lse=lse)
    channels = v.shape[3]
    assert isinstance(channels, int)
    wide = width_of(channels)
    w("item = tl.program_id(0)")
    w(f"s = item % {shape.rows}")
    w(f"h = item // {shape.rows} % {shape.heads}")
    w(f"b = item // ({shape.rows} * {shape.heads})")
    w(f"g = h // {shape.shared}")
    w(f"d = tl.arange(0, {shape.width})[None, :]")
    w(f"e = tl.arange(0, {wide})[None, :]")
    q = shape.query(w, "item")
    sinks = node.operand("sinks")
    if sinks is None:
        w(f"top = tl.full((), {LOWEST}, tl.float32)")
        w("total = tl.full((), 0.0, tl.float32)")
    else:
        pointers(arguments, sinks=sinks)
        w(f"top = {loaded('sinks', 'h', sinks.dtype)}")
        w("total = tl.full((), 1.0, tl.float32)")
    w(f"sums = tl.zeros((1, {wide}), tl.float32)")
    with w.block(f"for start in range(0, {shape.tokens}, {TILE}):"):
        w(f"j = start + tl.arange(0, {TILE})")
        w(f"here = j < {shape.tokens}")
        shape.keys(w, arguments)
        x = _seen(w, arguments, node, shape, _capped(w, arguments, node, shape, shape.logits(w, q)))
        w(f"higher = tl.maximum(top, tl.max({x}, 0))")
        w(f"p = tl.exp({x} - higher)")
        w("shrink = tl.exp(top - higher)")
        w("total = total * shrink + tl.sum(p, 0)")
        values = loaded("v", f"(first + j)[:, None] * {channels} + e", v.dtype, f"here[:, None] & (e < {channels})")
        w(f"sums = sums * shrink + tl.sum(p[:, None] * {values}, 0, keep_dims=True)")
        w("top = higher")
    w("some = total > 0.0")
    w("divisor = tl.where(some, total, 1.0)")
    w.store("out", f"item.to(tl.int64) * {channels} + e", out.dtype, "sums / divisor", f"e < {channels}")
    w("tl.store(lse + item, tl.where(some, top + tl.log(divisor), -float('inf')))")
    grid = (f"{shape.batch} * {shape.heads} * {shape.rows}",)
    return (arguments.call("attention_lse", w, Launch(grid, 4), "attention row by row, with log-sum-exps"),)


def stats_calls(node: Node) -> tuple[Call, ...]:
    """`attention_stats`."""
    arguments, w = Arguments(), Writer()
    shape = _Shape(node, arguments)
    c, n = node.outputs
    pointers(arguments, q=shape.q, lse=_needed(node, "lse"), c=c, n=n)
    wanted, most = int(str(node.attr("rows") or 0)), node.attr("group") == "max"
    highest, causal = node.attr("reduce") == "max", bool(node.attr("causal"))
    w("unit = tl.program_id(1)")
    w(f"b = unit // {shape.groups}")
    w(f"g = unit % {shape.groups}")
    w(f"j = tl.program_id(0) * {TILE} + tl.arange(0, {TILE})")
    w(f"here = j < {shape.tokens}")
    w(f"d = tl.arange(0, {shape.width})[None, :]")
    shape.keys(w, arguments)
    w(f"begin = tl.maximum({shape.rows} - {wanted}, 0)" if wanted else "begin = 0")
    w(f"received = tl.zeros(({TILE},), tl.float32)")
    with w.block(f"for one in range({shape.shared}):"):
        w(f"of_head = tl.zeros(({TILE},), tl.float32)")
        with w.block(f"for s in range(begin, {shape.rows}):"):
            w(f"row = (b * {shape.heads} + g * {shape.shared} + one) * {shape.rows} + s")
            x = shape.logits(w, shape.query(w, "row"))
            seen = "here & (j <= s)" if causal else "here"
            w(f"p = tl.where({seen}, tl.exp({x} - tl.load(lse + row)), 0.0)")
            w("of_head = tl.maximum(of_head, p)" if highest else "of_head += p")
        w("received = tl.maximum(received, of_head)" if most else "received += of_head")
    part = f" * {1 / shape.shared!r}" if node.attr("group") == "mean" else ""
    w(f"tl.store(c + first + j, received{part}, mask=here)")
    before = "tl.maximum(j, begin)" if causal else "begin + j * 0"
    count = f"tl.maximum({shape.rows} - {before}, 0).to(tl.int64)"
    w(f"tl.store(n + j, {count}, mask=j < tl.where(unit == 0, {shape.tokens}, 0))")
    grid = (f"ceil({shape.tokens}, {TILE})", f"{shape.batch} * {shape.groups}")
    return (arguments.call("attention_stats", w, Launch(grid, 4), "how much attention keys get"),)


def _capped(w: Writer, arguments: Arguments, node: Node, shape: _Shape, x: str) -> str:
    """Logits after the cap and the bias."""
    cap, bias = node.attr("softcap"), node.operand("bias")
    if cap is not None:
        limit = float(str(cap))
        x = w.let(f"{limit!r} * {tanh(w, w.let(f'{x} / {limit!r}', 'x'))}", "x")
    if bias is not None:
        pointers(arguments, bias=bias)
        x = w.let(f"{x} + {loaded('bias', _place(arguments, bias), bias.dtype, 'here')}", "x")
    return x


def _seen(w: Writer, arguments: Arguments, node: Node, shape: _Shape, x: str) -> str:
    """Logits, minus infinity where the row sees nothing."""
    window, mask, seen = node.attr("window"), node.operand("mask"), "here"
    if node.attr("causal"):
        seen += " & (j <= s)"
    if window is not None:
        seen += f" & (s - j < {window})"
    if mask is not None:
        pointers(arguments, mask=mask)
        seen += f" & {loaded('mask', _place(arguments, mask), mask.dtype, 'here')}"
    return w.let(f"tl.where({seen}, {x}, -float('inf'))", "x")


def _place(arguments: Arguments, value: Value) -> str:
    """The element of a value that is broadcast to [B, H, S, T]."""
    missing = 4 - len(value.shape)
    strides = (*(0,) * missing, *row_major(value.shape))
    place = arguments.index(View(value, (*(1,) * missing, *value.shape), strides), ("b", "h", "s", "j"))
    return f"({place} + j * 0)"


def _needed(node: Node, name: str) -> Value:
    value = node.operand(name)
    assert value is not None, f"{node.op.name} has no {name}"
    return value
