"""Kernels of attention over blocked keys: with split keys for a few queries, in blocks of queries for many.

`split` gives every thread the same number of tiles of 64 keys, whatever the rows' lengths (Flash-Decoding, Dao et al.
2023); `combine` adds up what the threads have found. `blocks` computes a block of queries of all heads that share a KV
head from its first to its last visible key, and skips the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from irx.backends.tvm import vector_math
from irx.backends.tvm.arguments import Arguments, total, whole
from irx.backends.tvm.lowered import Binding, Call, Temporary
from irx.backends.tvm.templates.attention_form import BLOCK, ELEMENT, KEYS, LOG2_E, VALUES, Form
from irx.backends.tvm.templates.attention_tile import Places, RowTexts, begin, scores, softmax, values
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


def split_temporaries(f: Form, x: Sources) -> dict[str, Temporary]:
    """What the threads of `split` leave for `combine`: outputs, maxima and sums of every row, by thread."""
    rows = x.batch * f.groups * (x.length * f.shared + f.rows)
    return {
        "o": Temporary("o", rows * f.v_width * 4, per_thread=True),
        "m": Temporary("m", rows * 4, per_thread=True),
        "l": Temporary("l", rows * BLOCK * 4, per_thread=True),
    }


class _Kernel:
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

    def read(self) -> None:
        """Declare what tiles read."""
        f, x, add = self.f, self.x, self.arguments.pointer
        self.capacity = self.arguments.number("capacity", x.capacity)
        add("q", "float32" if f.dot == "fma" else "int32", x.q)
        add("k", ELEMENT[f.storage], x.parts["k"])
        add("v", VALUES[f.storage], x.parts["v"])
        if f.storage == "i8":
            add("k_scale", "float32", x.parts["k_scale"])
            add("v_scale", "float32", x.parts["v_scale"])
        if x.table is not None:
            binding, _ = x.table
            add("table", "float32", binding)
        if x.bias is not None:
            add("bias", "float32", x.bias)
            self.bias_strides = [self.arguments.size(s) for s in x.bias_strides]
            self.bias_width = self.arguments.size(x.bias_width)

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

    def places(self, b: str, g: str, q_row: str, o: str, m: str, l: str, scratch: str, tile: str, end: str, count: str) -> Places:  # fmt: skip
        """Where a tile's rows are."""
        f, w = self.f, self.w
        head = whole(w, f"({b}) * {f.groups} + ({g})")
        per_pair = "" if f.storage != "bf16" else " // 2"
        return Places(
            q=whole(w, f"({q_row}) * {f.q_width}"),
            k=whole(w, f"{head} * ({self.capacity} // {BLOCK}) * {f.steps * BLOCK}"),
            v=whole(w, f"{head} * ({self.capacity}{per_pair}) * {f.v_width}"),
            s=whole(w, f"({scratch}) * {KEYS}"),
            o=o,
            m=m,
            l=l,
            p=whole(w, f"({scratch}) * {KEYS // 2}"),
            scales=whole(w, f"{head} * {self.capacity}"),
            first=tile,
            end=end,
            count=count,
        )

    def fold(self, a: Places, b: str, g: str, first: str, unmasked: str) -> None:
        """One tile for the queries from `first` on."""
        f, w = self.f, self.w
        scores(w, f, a)
        with w.block(f"for r in T.serial({a.count}):"):
            softmax(w, f, a, self._row(b, g, first), unmasked)
        values(w, f, a)

    def _row(self, b: str, g: str, first: str) -> RowTexts:
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
    def tiles(self, first: str, end: str) -> Iterator[str]:
        """For the tiles [first, end): gives the text of a tile's first key."""
        with self.w.block(f"for number in T.serial({end} - {first}):"):
            yield whole(self.w, f"({first} + number) * {KEYS}")

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


def split(f: Form, x: Sources) -> tuple[Call, ...]:
    """Attention of a few queries: two calls."""
    left = split_temporaries(f, x)
    return _split(f, x, left), _combine(f, x, left)


def _split(f: Form, x: Sources, left: dict[str, Temporary]) -> Call:
    kernel = _Kernel(f, x)
    kernel.read()
    w, add = kernel.w, kernel.arguments.pointer
    for name, temporary in left.items():
        add(name, "float32", temporary)
    rows: Dim = x.length * f.shared + f.rows
    add("s", "float32", Temporary("s", rows * KEYS * 4, per_thread=True))
    if f.dot == "dpbf16":
        add("p", "int32", Temporary("p", rows * KEYS * 2, per_thread=True))
    count = whole(w, f"{kernel.length} * {f.shared}")
    room = whole(w, f"{count} + {f.rows}")
    mine = whole(w, f"tid * {kernel.batch} * {f.groups} * {room}")
    first, end = _share(kernel)
    done = w.register("T.int64(0)", dtype="int64", lanes=1)
    with w.block(f"for b in T.serial({kernel.batch}):"):
        lowest, latest, least, most = kernel.bounds("b", "T.int64(0)", kernel.length)
        start, tiles = _tiles(w, lowest, most)
        with w.block(f"for g in T.serial({f.groups}):"):
            from_tile = whole(w, f"T.max({first} - {done}, T.int64(0))")
            to_tile = whole(w, f"T.min({end} - {done}, {tiles})")
            with w.block(f"if {from_tile} < {to_tile}:"):
                row = whole(w, f"{mine} + (b * {f.groups} + g) * {room}")
                _segment(kernel, row, count, room, (f"{start} + {from_tile}", f"{start} + {to_tile}"), latest, least, most)  # fmt: skip
            w(f"{done} = {done} + {tiles}")
    return kernel.arguments.call("attention_split", w, f"attention to {f.storage} keys, split", llvm=f.llvm)


def _segment(
    kernel: _Kernel, row: str, count: str, room: str, span: tuple[str, str], latest: str, least: str, most: str
) -> None:
    """The tiles of one head that fall to this thread."""
    w, f = kernel.w, kernel.f
    o, l = whole(w, f"{row} * {f.v_width}"), whole(w, f"{row} * {BLOCK}")
    q_row = whole(w, f"(b * {f.groups} + g) * {count}")
    begin(w, f, Places("", "", "", "", o, row, l, "", "", "", "", count))
    with kernel.tiles(*span) as tile:
        a = kernel.places("b", "g", q_row, o, row, l, f"tid * {room}", tile, most, count)
        unmasked = f"{tile} >= {latest} and {tile} + {KEYS} <= {least}"
        kernel.fold(a, "b", "g", "T.int64(0)", unmasked)


def _tiles(w: Writer, lowest: str, most: str) -> tuple[str, str]:
    """The first tile and the number of tiles that hold keys [lowest, most)."""
    some = f"{most} > 0"
    start = whole(w, f"T.if_then_else({some}, {lowest} // {KEYS}, T.int64(0))")
    return start, whole(w, f"T.if_then_else({some}, ({most} + {KEYS - 1}) // {KEYS} - {start}, T.int64(0))")


def _share(kernel: _Kernel, thread: str = "tid") -> tuple[str, str]:
    """The first and last tile, counted over rows and heads, of a thread."""
    return _share_of(kernel.w, _all_tiles(kernel), thread)


def _all_tiles(kernel: _Kernel) -> str:
    w = kernel.w
    every = w.register("T.int64(0)", dtype="int64", lanes=1)
    with w.block(f"for b in T.serial({kernel.batch}):"):
        lowest, _, _, most = kernel.bounds("b", "T.int64(0)", kernel.length)
        _, tiles = _tiles(w, lowest, most)
        w(f"{every} = {every} + {tiles} * {kernel.f.groups}")
    return every


def _share_of(w: Writer, every: str, thread: str) -> tuple[str, str]:
    return whole(w, f"{every} * {thread} // nt"), whole(w, f"{every} * ({thread} + 1) // nt")


def _combine(f: Form, x: Sources, left: dict[str, Temporary]) -> Call:
    """out = the sum over threads, weighted by how far each one's maximum is below the highest."""
    kernel = _Kernel(f, x)
    w, add = kernel.w, kernel.arguments.pointer
    for name, temporary in left.items():
        add(name, "float32", temporary)
    _declare_result(kernel)
    strides = [kernel.arguments.size(n) for n in x.out_strides]
    count = whole(w, f"{kernel.length} * {f.shared}")
    room = whole(w, f"{count} + {f.rows}")
    heads = whole(w, f"{kernel.batch} * {f.groups}")
    every = _all_tiles(kernel)
    done = w.register("T.int64(0)", dtype="int64", lanes=1)
    with w.block(f"for b in T.serial({kernel.batch}):"):
        lowest, _, _, most = kernel.bounds("b", "T.int64(0)", kernel.length)
        _, tiles = _tiles(w, lowest, most)
        with w.block(f"for g in T.serial({f.groups}):"):
            number = whole(w, f"(b * {f.groups} + g) * {count}")
            # Row r falls to thread (number + r) % nt.
            skipped = whole(w, f"(tid + nt - {number} % nt) % nt")
            with w.block(f"for turn in T.serial(({count} - {skipped} + nt - 1) // nt):"):
                r = whole(w, f"{skipped} + turn * nt")
                _combine_row(kernel, r, every, done, tiles, f"(b * {f.groups} + g) * {room} + {r}", f"{heads} * {room}", strides)  # fmt: skip
            w(f"{done} = {done} + {tiles}")
    return kernel.arguments.call("attention_combine", w, "adds up split attention")


def _combine_row(
    kernel: _Kernel, r: str, every: str, done: str, tiles: str, row: str, step: str, strides: list[str]
) -> None:
    w, f = kernel.w, kernel.f
    head = f"(g * {f.shared} + {r} % {f.shared})"
    top = w.register("T.float32(-1e30)", lanes=1)
    with _contributors(w, every, done, tiles) as thread:
        w(f"{top} = T.max({top}, m[{thread} * {step} + {row}])")
    sink = _sink(kernel, head)
    if sink is not None:
        w(f"{top} = T.max({top}, {sink})")
    weight = w.register("T.broadcast(T.float32(0), 16)")
    sums = [w.register("T.broadcast(T.float32(0), 16)") for _ in range(f.v_width // 16)]
    with _contributors(w, every, done, tiles) as thread:
        at_row = whole(w, f"{thread} * {step} + {row}")
        share = vector_math.exp2(w, splat(f"(m[{at_row}] - {top})"))
        w(f"{weight} = {weight} + {share} * {at('l', f'{at_row} * {BLOCK}')}")
        for v, value in enumerate(sums):
            w(f"{value} = {value} + {share} * {at('o', f'{at_row} * {f.v_width} + {v * 16}')}")
    scale = _inverse(w, weight, sink, top)
    # The first thread's copy of the row is nobody else's: the sums go there on their way out.
    own = whole(w, f"({row}) * {f.v_width}")
    for v, value in enumerate(sums):
        w(f"{at('o', f'{own} + {v * 16}')} = {value}")
    kernel.write(own, scale, "b", head, f"({r} // {f.shared})", strides)


@contextmanager
def _contributors(w: Writer, every: str, done: str, tiles: str) -> Iterator[str]:
    """For the threads that have tiles of a head which begins at tile `done`."""
    with w.block("for thread in T.serial(nt):"):
        first, end = _share_of(w, every, "thread")
        overlap = f"T.max({first}, {done}) < T.min({end}, {done} + {tiles})"
        with w.block(f"if {overlap}:"):
            yield "thread"


def _declare_result(kernel: _Kernel) -> None:
    x = kernel.x
    kernel.arguments.pointer("out", {"f32": "float32", "bf16": "uint16"}[x.out_dtype], x.out)
    if x.sinks is not None:
        binding, dtype = x.sinks
        kernel.arguments.pointer("sinks", {"f32": "float32", "bf16": "uint16"}[dtype], binding)


def _sink(kernel: _Kernel, head: str) -> str | None:
    if kernel.x.sinks is None:
        return None
    _, dtype = kernel.x.sinks
    return kernel.w.register(f"{widened(f'sinks[{head}]', dtype, 1)} * T.float32({LOG2_E})", lanes=1)


def _inverse(w: Writer, weight: str, sink: str | None, top: str) -> str:
    """One over the sum of a row's weights, in all lanes; 0 where nothing was seen."""
    added = f'T.call_llvm_pure_intrin("float32", "llvm.vector.reduce.fadd", T.float32(0), {weight})'
    summed = w.register(added, lanes=1)
    if sink is not None:
        w(f"{summed} = {summed} + {vector_math.exp2(w, w.register(f'{sink} - {top}', lanes=1), 1)}")
    return w.register(splat(f"T.if_then_else({summed} > T.float32(0), T.float32(1) / {summed}, T.float32(0))"))


def blocks(f: Form, x: Sources, queries: int) -> Call:
    """Attention of many queries, `queries` of them (and all heads that share a KV head) at a time."""
    kernel = _Kernel(f, x)
    kernel.read()
    w, add = kernel.w, kernel.arguments.pointer
    rows = -(-queries * f.shared // f.rows) * f.rows
    for name, width in (("o", f.v_width), ("m", 16), ("l", BLOCK), ("s", KEYS)):
        add(name, "float32", Temporary(f"block_{name}", rows * width * 4, per_thread=True))
    if f.dot == "dpbf16":
        add("p", "int32", Temporary("block_p", rows * KEYS * 2, per_thread=True))
    _declare_result(kernel)
    strides = [kernel.arguments.size(n) for n in x.out_strides]
    heads = whole(w, f"{kernel.batch} * {f.groups}")
    parts = whole(w, f"({kernel.length} + {queries - 1}) // {queries}")
    # Later queries see more keys: they go first, and threads take turns.
    with w.block(f"for turn in T.serial(({parts} * {heads} - tid + nt - 1) // nt):"):
        task = whole(w, "tid + turn * nt")
        first = whole(w, f"({parts} - 1 - {task} // {heads}) * {queries}")
        b, g = whole(w, f"({task} % {heads}) // {f.groups}"), whole(w, f"{task} % {f.groups}")
        _block(kernel, b, g, first, queries, rows, strides)
    return kernel.arguments.call("attention_blocks", w, f"attention to {f.storage} keys, in blocks", llvm=f.llvm)


def _block(kernel: _Kernel, b: str, g: str, first: str, queries: int, rows: int, strides: list[str]) -> None:
    w, f = kernel.w, kernel.f
    last = whole(w, f"T.min({first} + {queries}, {kernel.length})")
    count = whole(w, f"({last} - {first}) * {f.shared}")
    o, m, l = (whole(w, f"tid * {rows * width}") for width in (f.v_width, 16, BLOCK))
    begin(w, f, Places("", "", "", "", o, m, l, "", "", "", "", count))
    lowest, latest, least, most = kernel.bounds(b, first, last)
    start, tiles = _tiles(w, lowest, most)
    q_row = whole(w, f"(({b} * {f.groups} + {g}) * {kernel.length} + {first}) * {f.shared}")
    with kernel.tiles(start, f"({start} + {tiles})") as tile:
        a = kernel.places(b, g, q_row, o, m, l, f"tid * {rows}", tile, most, count)
        kernel.fold(a, b, g, first, f"{tile} >= {latest} and {tile} + {KEYS} <= {least}")
    with w.block(f"for r in T.serial({count}):"):
        head = f"({g} * {f.shared} + r % {f.shared})"
        sink = _sink(kernel, head)
        top = w.register(f"m[{m} + r]", lanes=1)
        scale = _inverse_with(w, at("l", f"{l} + r * {BLOCK}"), sink, top)
        kernel.write(f"{o} + r * {f.v_width}", scale, b, head, f"({first} + r // {f.shared})", strides)


def _inverse_with(w: Writer, weight: str, sink: str | None, top: str) -> str:
    """As `_inverse`, for sums at the maximum `top` that does not count the sink yet."""
    if sink is None:
        return _inverse(w, weight, None, top)
    now = w.register(f"T.max({top}, {sink})", lanes=1)
    shrink = vector_math.exp2(w, w.register(f"{top} - {now}", lanes=1), 1)
    inverse = _inverse(w, f"{weight} * {splat(shrink)}", sink, now)
    return w.register(f"{inverse} * {splat(shrink)}")
