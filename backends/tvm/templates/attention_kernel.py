"""What the kernels of attention over blocked keys share: their buffers and sizes, what rows see, and results.

`attention_split` gives every thread the same number of tiles of 64 keys, for a few queries; `attention_blocks` computes
blocks of queries, for many.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from irx.backends.regions.lowered import Binding, Temporary
from irx.backends.tvm import vector_math
from irx.backends.tvm.arguments import Arguments, total, whole
from irx.backends.tvm.templates.attention_form import BLOCK, KEYS, LOG2_E, Form
from irx.backends.tvm.templates.attention_tile import Places, RowTexts, Sums, scores, softmax, values
from irx.backends.tvm.templates.pages import Pages
from irx.backends.tvm.templates.recent import Recent
from irx.backends.tvm.writer import Writer, at, splat, widened
from irx.ir.dims import Dim


@dataclass(frozen=True)
class Sources:
    """What an attention reads and writes. `keys` is the number of keys, or None for a state's: then `positions` says
    where the queries are. `capacity` is the number of slots. `bias_strides` are rows of the prepared bias per batch,
    head and query; `bias_width` its columns.
    """

    batch: Dim
    length: Dim
    capacity: Binding
    q: Temporary
    parts: dict[str, Binding]
    out: Binding
    out_dtype: str
    out_strides: tuple[Dim, ...]
    positions: Binding | None = None
    keys: Dim | None = None
    table: tuple[Binding, str] | None = None
    sinks: tuple[Binding, str] | None = None
    bias: Binding | None = None
    bias_strides: tuple[Dim, ...] = (0, 0, 0)
    bias_width: Dim = 0
    prefix: tuple[Binding, Binding] | None = None
    """The numbers of tokens and of slots of a prefix; its arrays are among the parts."""
    pages: Pages | None = None
    """Where the slots of a state are that lie in pages."""
    recent: Recent | None = None
    """The newest tokens, of a call of many to a state with a tail."""


class AttentionKernel:
    """What both kernels have in common: buffers, sizes, and what is known of rows."""

    def __init__(self, f: Form, x: Sources) -> None:
        self.f = f
        self.x = x
        self.w = Writer()
        self.arguments = Arguments()
        self.batch = self.arguments.size(x.batch)
        self.length = self.arguments.size(x.length)
        if x.positions is not None:
            self.arguments.pointer("pos", "int64", x.positions)
        self.keys = "" if x.keys is None else self.arguments.size(x.keys)
        if x.prefix is not None:
            self.arguments.number("prefix_length", x.prefix[0])

    def read(self) -> None:
        """Declare what tiles read."""
        f, x, add = self.f, self.x, self.arguments.pointer
        if x.pages is None:
            self.capacity = self.arguments.number("capacity", x.capacity)
        else:
            x.pages.declare(self.arguments)
        add("q", "float32" if f.dot == "fma" else "int32", x.q)
        add("k", f.store.word, x.parts["k"])
        add("v", f.store.value, x.parts["v"])
        for name in f.store.arrays:
            if name not in ("k", "v"):
                add(name, self.dtype_of(name), x.parts[name])
        if x.prefix is not None:
            self.arguments.number("prefix_capacity", x.prefix[1])
            for name in f.store.arrays:
                own = {"k": f.store.word, "v": f.store.value}.get(name, f.store.parameter)
                add(f"prefix_{name}", own, x.parts[f"prefix_{name}"])
        if x.table is not None:
            binding, _ = x.table
            add("table", "float32", binding)
        if x.bias is not None:
            add("bias", "float32", x.bias)
            self.bias_strides = [self.arguments.size(s) for s in x.bias_strides]
            self.bias_width = self.arguments.size(x.bias_width)

    def dtype_of(self, part: str) -> str:
        """How an array beside the keys and values lies in memory."""
        return self.f.store.parameter

    def position(self, b: str, s: str) -> str:
        """The position of query s of row b."""
        return f"pos[({b}) * {self.length} + ({s})]" if self.x.positions is not None else f"({s})"

    def low(self, position: str) -> str:
        """The first key a query at a position sees."""
        return "T.int64(0)" if self.f.window is None else f"T.max({position} - {self.f.window - 1}, T.int64(0))"

    def high(self, position: str) -> str:
        """Behind the last key a query at a position sees."""
        if not self.f.causal:
            return self.keys
        return f"({position} + 1)" if self.x.keys is None else f"T.min({position} + 1, {self.keys})"

    def bounds(self, b: str, first: str, end: str) -> tuple[str, str, str, str]:
        """Of queries [first, end) of row b: the lowest and highest low, the lowest and highest high."""
        w = self.w
        far = "T.int64(1099511627776)"
        lowest, least = (w.register(far, dtype="int64", lanes=1) for _ in range(2))
        latest, most = (w.register("T.int64(0)", dtype="int64", lanes=1) for _ in range(2))
        with w.block(f"for i in T.serial({end} - ({first})):"):
            position = whole(w, self.position(b, f"{first} + i"))
            low, high = whole(w, self.low(position)), whole(w, self.high(position))
            w(f"{least} = T.min({least}, {high})")
            w(f"{most} = T.max({most}, {high})")
            w(f"{latest} = T.max({latest}, {low})")
            with w.block(f"if {high} > 0:"):
                w(f"{lowest} = T.min({lowest}, {low})")
        return lowest, latest, least, most

    def query_row(self, b: str, g: str, first: str) -> str:
        """The row of the prepared queries of a head, from a query on."""
        f = self.f
        head = f"(({g}) * {self.batch} + {b})" if f.prefix else f"(({b}) * {f.groups} + {g})"
        return whole(self.w, f"({head} * {self.length} + {first}) * {f.shared}")

    def places(
        self,
        b: str,
        g: str,
        q_row: str,
        sums: Sums,
        scratch: str,
        tile: str,
        end: str,
        count: str,
        ahead: str = str(KEYS),
    ) -> Places:
        """Where a tile's rows are; `ahead` as in `Places`."""
        f, w = self.f, self.w
        k, v, scales = self._first_slot(b, g, tile)
        return Places(
            q=whole(w, f"({q_row}) * {f.q_width}"),
            k=whole(w, f"{k} * {f.steps * BLOCK}"),
            v=whole(w, f"{v} * {f.v_elements}"),
            s=whole(w, f"({scratch}) * {KEYS}"),
            sums=sums,
            p=whole(w, f"({scratch}) * {KEYS // 2}"),
            scales=whole(w, scales),
            first=tile,
            end=end,
            count=count,
            ahead=ahead,
        )

    def ahead(self, tile: str, first: str, end: str) -> str:
        """Slots from a tile to the next one that the thread meets, of tiles [first, end) of a head."""
        if self.x.pages is not None:
            return str(KEYS)
        is_last = f"{tile} + {KEYS} >= ({end}) * {KEYS}"
        return whole(
            self.w, f"T.if_then_else({is_last}, {self.capacity} + ({first}) * {KEYS} - {tile}, T.int64({KEYS}))"
        )

    def _first_slot(self, b: str, g: str, tile: str) -> tuple[str, str, str]:
        """From where the slots of a head are counted that a tile reads: in blocks, in elements of values, and alone."""
        if self.x.recent is not None:
            return "T.int64(0)", "T.int64(0)", "T.int64(0)"  # a tile says itself where it is
        store = self.f.store
        if self.x.pages is None:
            head = whole(self.w, f"({b}) * {self.f.groups} + ({g})")
            blocks, elements = (f"{head} * ({self.capacity} // {slots})" for slots in (BLOCK, store.tokens))
            return blocks, elements, f"{head} * {self.capacity}"
        slot = self.x.pages.first_slot(self.w, b, g, self.f.groups, tile)
        return f"({slot} // {BLOCK})", f"({slot} // {store.tokens})", slot

    def fold(self, a: Places, b: str, g: str, first: str, unmasked: str) -> None:
        """One tile for the queries from `first` on."""
        f, w = self.f, self.w
        scores(w, f, a)
        with w.block(f"for r in T.serial({a.count}):"):
            softmax(w, f, a, self.row(b, g, first), unmasked)
        values(w, f, a)

    def row(self, b: str, g: str, first: str) -> RowTexts:
        """What is known of row `r` of the queries from `first` on."""
        f = self.f
        s = f"({first} + r // {f.shared})"
        head = f"(({g}) * {f.shared} + r % {f.shared})"
        position = self.position(b, s)
        bias = ""
        if self.x.bias is not None:
            rows = zip((b, head, s), self.bias_strides, strict=True)
            bias = f"({total(*(f'({i}) * {n}' for i, n in rows if n != 'T.int64(0)'))}) * {self.bias_width}"
        return RowTexts(
            low=f'T.cast({self.low(position)}, "int32")',
            high=f'T.cast({self.high(position)}, "int32")',
            head=head,
            bias=bias,
            position=position,
        )

    @contextmanager
    def tiles(self, first: str, end: str, span: Span | None = None) -> Iterator[str]:
        """For the tiles [first, end), counted in a span where there is one: gives the text of a tile's first key."""
        with self.w.block(f"for number in T.serial({end} - {first}):"):
            tile = f"({first} + number)"
            yield whole(self.w, f"{tile if span is None else span.at(whole(self.w, tile))} * {KEYS}")

    def write(self, o: str, scale: str, b: str, head: str, s: str, strides: list[str]) -> None:
        """Store a row of the result from `res[o:]`, multiplied by a vector `scale`."""
        f, w, x = self.f, self.w, self.x
        index = zip((b, head, s), strides[:3], strict=True)
        base = whole(w, total(*(f"({i}) * {n}" for i, n in index if n != "T.int64(0)")))
        for v in range(f.v_width // 16):
            value = w.register(f"{at('o', f'{o} + {v * 16}')} * {scale}")
            if (v + 1) * 16 <= f.v_dim and strides[3] == "T.int64(1)":
                w.store("out", f"{base} + {v * 16}", x.out_dtype, value)
                continue
            lanes = w.local(16)
            w(f"{at(lanes, '0')} = {value}")
            for lane in range(min(16, f.v_dim - v * 16)):
                w.store("out", f"{base} + {v * 16 + lane} * {strides[3]}", x.out_dtype, f"{lanes}[{lane}]", 1)


@dataclass(frozen=True)
class Span:
    """The `count` tiles that rows see: those from `start` on, and before them the first `extra` if there are any."""

    start: str
    count: str
    extra: str = ""

    def at(self, index: str) -> str:
        """The number of the tile with an index among these."""
        behind = f"({self.start} + {index})"
        if not self.extra:
            return behind
        return f"T.if_then_else({index} < {self.extra}, {index}, {behind} - {self.extra})"


def tile_span(w: Writer, f: Form, lowest: str, most: str) -> Span:
    """The tiles that hold keys [lowest, most), and the first keys that a form sees besides."""
    some = f"{most} > 0"
    start = whole(w, f"T.if_then_else({some}, {lowest} // {KEYS}, T.int64(0))")
    count = whole(w, f"T.if_then_else({some}, ({most} + {KEYS - 1}) // {KEYS} - {start}, T.int64(0))")
    if not f.first:
        return Span(start, count)
    extra = whole(w, f"T.min(T.int64({-(-f.first // KEYS)}), {start})")
    return Span(start, whole(w, f"{count} + {extra}"), extra)


def declare_result(kernel: AttentionKernel) -> None:
    """Declare what results are written to, and the sinks that they are divided with."""
    x = kernel.x
    kernel.arguments.pointer("out", {"f32": "float32", "bf16": "uint16"}[x.out_dtype], x.out)
    if x.sinks is not None:
        binding, dtype = x.sinks
        kernel.arguments.pointer("sinks", {"f32": "float32", "bf16": "uint16"}[dtype], binding)


def sink_of(kernel: AttentionKernel, head: str) -> str | None:
    """A head's sink as an exponent of 2, None where there are none."""
    if kernel.x.sinks is None:
        return None
    _, dtype = kernel.x.sinks
    return kernel.w.register(f"{widened(f'sinks[{head}]', dtype, 1)} * T.float32({LOG2_E})", lanes=1)


def weight_inverse(w: Writer, weight: str, sink: str | None, top: str) -> str:
    """One over the sum of a row's weights, in all lanes; 0 where nothing was seen."""
    added = f'T.call_llvm_pure_intrin("float32", "llvm.vector.reduce.fadd", T.float32(0), {weight})'
    summed = w.register(added, lanes=1)
    if sink is not None:
        w(f"{summed} = {summed} + {vector_math.exp2(w, w.register(f'{sink} - {top}', lanes=1), 1)}")
    return w.register(splat(f"T.if_then_else({summed} > T.float32(0), T.float32(1) / {summed}, T.float32(0))"))


def weight_inverse_below(w: Writer, weight: str, sink: str | None, top: str) -> str:
    """As `weight_inverse`, for sums at the maximum `top` that does not count the sink yet."""
    if sink is None:
        return weight_inverse(w, weight, None, top)
    now = w.register(f"T.max({top}, {sink})", lanes=1)
    shrink = vector_math.exp2(w, w.register(f"{top} - {now}", lanes=1), 1)
    inverse = weight_inverse(w, f"{weight} * {splat(shrink)}", sink, now)
    return w.register(f"{inverse} * {splat(shrink)}")
