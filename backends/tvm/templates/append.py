"""The kernel before attention: heads of queries, keys and values, normalised, rotated, stored as attention reads them.

Queries go to a temporary [B, G, S, heads of the group, width], scaled, or as the pairs or quads that dot products take.
Keys and values go to the slots of a state, or of temporaries that are laid out alike; rotated heads that are results of
their own go there. A row's angles are computed once for all heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from irx.backends.regions.attention_region import HeadNorm, Heads, Rotation
from irx.backends.regions.lowered import Binding, Call, Data, Temporary
from irx.backends.regions.views import View
from irx.backends.tvm.arguments import Arguments, total, whole
from irx.backends.tvm.templates import rope
from irx.backends.tvm.templates.append_element import Element, Write, largest
from irx.backends.tvm.templates.append_tailed import Token, store_key, store_value
from irx.backends.tvm.templates.attention_form import BLOCK, Form, value_width
from irx.backends.tvm.templates.attention_storage import Storage, Tailed
from irx.backends.tvm.templates.instructions import reduced
from irx.backends.tvm.templates.pages import Pages
from irx.backends.tvm.templates.recent import SPAN, Recent
from irx.backends.tvm.writer import LANES, STORAGE, Writer, at, bf16_bits, splat, widened
from irx.ir.dims import Dim


@dataclass(frozen=True)
class Queries:
    """Heads that become prepared queries."""

    heads: Heads
    form: Form
    target: Temporary


@dataclass(frozen=True)
class Stored:
    """Keys or values (`part` k or v) that go to slots: `positions` [B, S] or, without, slot s for token s."""

    heads: Heads
    part: str
    store: Storage
    targets: dict[str, Binding]
    capacity: Binding
    positions: View | None
    pages: Pages | None = None
    recent: Recent | None = None
    """Of a call of many tokens to a state with a tail: which of its slots they go to, or, plain, where they stay."""

    @property
    def prefix(self) -> str:
        """What stands before the names of arrays."""
        return "recent_" if self.recent is not None and not isinstance(self.store, Tailed) else ""


@dataclass(frozen=True)
class Plain:
    """Heads that are a result: strides of its axes [b, h, s, d]."""

    heads: Heads
    target: Data
    strides: tuple[Dim, ...]


Work = Queries | Stored | Plain


def prepare(works: Sequence[Work]) -> Call:
    """One kernel for all of them. Works with the same number of rows share their loop."""
    return _Prepare(works).call()


class _Prepare:
    def __init__(self, works: Sequence[Work]) -> None:
        self.works = works
        self.w = Writer()
        self.arguments = Arguments()

    def call(self) -> Call:
        by_rows: dict[tuple[Dim, Dim], list[Work]] = {}
        for work in self.works:
            shape = work.heads.view.shape
            by_rows.setdefault((shape[0], shape[2]), []).append(work)
        widest = max(_width(work) for work in self.works)
        pairs = max((w.heads.rotation.pairs for w in self.works if w.heads.rotation is not None), default=0)
        self.room = -(-widest // LANES) * LANES + LANES
        self.arguments.pointer("head", "float32", Temporary("head", self.room * 4, per_thread=True))
        self.start = whole(self.w, f"tid * {self.room}")
        if pairs:
            room = -(-2 * pairs // LANES) * LANES
            self.arguments.pointer("angle", "float32", Temporary("angle", room * 4, per_thread=True))
            self.angle = whole(self.w, f"tid * {room}")
        for (batch, length), works in by_rows.items():
            self._rows(self.arguments.size(batch), self.arguments.size(length), works)
        names = sorted({type(work).__name__.lower() for work in self.works})
        return self.arguments.call("attention_prepare", self.w, f"prepares {', '.join(names)}")

    def _rows(self, batch: str, length: str, works: list[Work]) -> None:
        """Heads of all rows, in the order of rows, divided among threads."""
        w = self.w
        heads = sum(work.heads.count for work in works)
        first = whole(w, f"{batch} * {length} * {heads} * tid // nt")
        end = whole(w, f"{batch} * {length} * {heads} * (tid + 1) // nt")
        with w.block(f"for index in T.serial(({end} + {heads - 1}) // {heads} - {first} // {heads}):"):
            row = whole(w, f"{first} // {heads} + index")
            b, s = whole(w, f"{row} // {length}"), whole(w, f"{row} % {length}")
            low = whole(w, f"T.max({first} - {row} * {heads}, T.int64(0))")
            high = whole(w, f"T.min({end} - {row} * {heads}, T.int64({heads}))")
            done, rotation = 0, None
            for work in works:
                if work.heads.rotation is not None and work.heads.rotation != rotation:
                    rotation = work.heads.rotation
                    self._angles(rotation, b, s)
                count = work.heads.count
                begin = whole(w, f"T.max({low} - {done}, T.int64(0))")
                stop = whole(w, f"T.min({high} - {done}, T.int64({count}))")
                with w.block(f"for turn in T.serial({stop} - {begin}):"):
                    self._head(work, b, s, whole(w, f"{begin} + turn"))
                done += count

    def _angles(self, rotation: Rotation, b: str, s: str) -> None:
        view = rotation.positions
        positions = self._input(view.base.name, "int64", Data(view.base))
        index = self._index(view, (b, s))
        position = whole(self.w, f"T.max({positions}[{index}], T.int64(0))")
        frequencies = self._input(rotation.inv_freq.name, "float32", Data(rotation.inv_freq))
        rope.angles(self.w, rotation, frequencies, position, "angle", self.angle)

    def _head(self, work: Work, b: str, s: str, h: str) -> None:
        """One head: into the thread's own buffer, changed there, and stored."""
        w, heads = self.w, work.heads
        if isinstance(work, Stored):
            slot = self._slot(work, b, s)
            with w.block(f"if {slot} >= 0:"):
                self._load(heads, b, s, h)
                self._store(work, b, h, slot)
            return
        self._load(heads, b, s, h)
        if isinstance(work, Queries):
            self._query(work, b, s, h)
        else:
            self._plain(work, b, s, h)

    def _load(self, heads: Heads, b: str, s: str, h: str) -> None:
        w, size = self.w, heads.size
        source = self._input(heads.view.base.name, STORAGE[heads.dtype], Data(heads.view.base))
        base = whole(w, self._index(heads.view, (b, h, s)))
        for c in range(0, self.room, LANES):
            place = at("head", f"{self.start} + {c}")
            if c + LANES <= size:
                w(f"{place} = {widened(at(source, f'{base} + {c}'), heads.dtype)}")
            else:
                w(f"{place} = {splat('T.float32(0)')}")
                if c < size:
                    with w.block(f"for d in T.serial({size - c}):"):
                        value = widened(f"{source}[{base} + {c} + d]", heads.dtype, 1)
                        w(f"head[{self.start} + {c} + d] = {value}")
        if heads.norm is not None:
            rope.normalise(w, heads.norm, *self._norm_weight(heads.norm), "head", self.start, size)
        if heads.rotation is not None:
            rope.rotate(w, heads.rotation, "angle", self.angle, "head", self.start)

    def _norm_weight(self, norm: HeadNorm) -> tuple[str, str]:
        if norm.weight is None:
            return "f32", ""
        dtype = norm.weight.dtype
        return dtype, self._input(norm.weight.name, STORAGE[dtype], Data(norm.weight))

    def _query(self, work: Queries, b: str, s: str, h: str) -> None:
        w, f = self.w, work.form
        length = self.arguments.size(work.heads.view.shape[2])
        head = f"({b} * {f.groups} + {h} // {f.shared})"
        if f.prefix:
            head = f"({h} // {f.shared} * {self.arguments.size(work.heads.view.shape[0])} + {b})"
        row = f"(({head} * {length} + {s}) * {f.shared} + {h} % {f.shared})"
        dtype = {"fma": "float32", "dpbf16": "uint16", "vnni": "int8"}[f.dot]
        target = self.arguments.pointer("queries", dtype, work.target)
        if f.dot == "vnni":
            self._bytes(f, target, row, work)
            return
        width = f.channels
        base = whole(w, f"{row} * {f.q_width * (2 if f.dot == 'dpbf16' else 1)}")
        summed = w.register(splat("T.float32(0)")) if f.store.zeros else ""
        scale = splat(f"T.float32({f.score_scale!r})")
        for c in range(0, width, LANES):
            value = w.register(at("head", f"{self.start} + {c}"))
            if f.store.name == "bf16":
                value = self._rounded(value)
            if f.dot == "fma":
                w(f"{value} = {value} * {scale}")
            dtype = "bf16" if f.dot == "dpbf16" else "f32"
            self._put(target, f"{base} + {c}", dtype, value, min(LANES, width - c))
            if summed:
                w(f"{summed} = {summed} + {value}")
        if summed:
            w(f"{target}[{base} + {f.q_sum}] = {reduced(summed, 'fadd')}")

    def _rounded(self, value: str) -> str:
        """To bf16 and back."""
        w = self.w
        bits = f"T.shift_left({bf16_bits(w, value)}, {splat('T.uint32(16)')})"
        return w.register(f'T.reinterpret("float32x16", {bits})')

    def _put(self, target: str, index: str, dtype: str, value: str, count: int) -> None:
        """The first `count` lanes."""
        w = self.w
        if count == LANES:
            w.store(target, index, dtype, value)
            return
        lanes = w.local(LANES)
        w(f"{at(lanes, '0')} = {value}")
        with w.block(f"for d in T.serial({count}):"):
            w.store(target, f"{index} + d", dtype, f"{lanes}[d]", 1)

    def _bytes(self, f: Form, target: str, row: str, work: Queries) -> None:
        """x = scale * (128 * high + low), both signed bytes; then what offsets or zeros need, and the scale.

        That is 128 * the sum of all x / scale, or the bits of the sum of all x.
        """
        w, width = self.w, f.channels
        numbers = self.arguments.pointer("query_words", "int32", work.target)
        most = largest(w, "head", self.start, width)
        scale = w.register(f"T.max({most}, T.float32(1e-30)) * T.float32({1 / 16256!r})", lanes=1)
        base = whole(w, f"{row} * {f.q_width * 4}")
        summed = w.register("T.int32(0)", dtype="int32", lanes=1)
        with w.block(f"for d in T.serial({width}):"):
            number = w.register(
                f'T.cast(T.nearbyint(head[{self.start} + d] / {scale}), "int32")', dtype="int32", lanes=1
            )
            high = w.register(f"T.shift_right({number} + 64, 7)", dtype="int32", lanes=1)
            w(f'{target}[{base} + d] = T.cast({high}, "int8")')
            w(f'{target}[{base} + {width} + d] = T.cast({number} - {high} * 128, "int8")')
            w(f"{summed} = {summed} + {number}")
        end = f"{row} * {f.q_width} + {f.q_sum}"
        factor = w.register(f"{scale} * T.float32({f.score_scale!r})", lanes=1)
        total_bits = f'T.reinterpret("int32", T.cast({summed}, "float32") * {factor})'
        w(f"{numbers}[{end}] = {total_bits if f.store.zeros else f'{summed} * {f.store.offset}'}")
        w(f'{numbers}[{end} + 1] = T.reinterpret("int32", {factor})')

    def _slot(self, work: Stored, b: str, s: str) -> str:
        if work.positions is None:
            return s
        view = work.positions
        positions = self._input(view.base.name, "int64", Data(view.base))
        position = f"{positions}[{self._index(view, (b, s))}]"
        return whole(self.w, f"{position} - {self._span(work.recent, b, 2)}" if work.prefix else position)

    def _span(self, recent: Recent | None, b: str, number: int) -> str:
        assert recent is not None
        return f"{self.arguments.pointer('spans', 'int64', recent.spans)}[{b} * {SPAN} + {number}]"

    def _store(self, work: Stored, b: str, h: str, slot: str) -> None:
        w, part, store = self.w, work.part, work.store
        heads = work.heads.count
        if work.pages is not None:
            work.pages.declare(self.arguments)
        elif work.prefix + "capacity" not in self.arguments.bindings:
            self.arguments.number(work.prefix + "capacity", work.capacity)
        if isinstance(store, Tailed):
            store_token = store_key if part == "k" else store_value
            head, pointer = whole(w, f"{b} * {heads} + {h}"), partial(self._pointer, work)
            since = whole(w, f"{self._span(work.recent, b, 1)} - {store.tail}") if work.recent is not None else ""
            store_token(w, Token(store, "head", self.start, work.heads.size, head, slot, pointer, since))
            return
        if work.pages is not None:
            slots = work.pages.first_slot(w, b, h, heads, slot)
        else:
            slots = whole(w, f"({b} * {heads} + {h}) * {work.prefix}capacity")
        names = [f"{part}_{name}" for name in store.parameters]
        parameters = [f"{self._pointer(work, name, store.parameter)}[{slots} + {slot}]" for name in names]
        element = Element(store, "head", self.start, work.heads.size, part == "k")
        write = element.writer(w, parameters)
        target = self._pointer(work, part, element.dtype)
        if part == "k":
            self._store_key(work, target, slots, slot, write)
        else:
            self._store_value(work, target, slots, slot, write)

    def _pointer(self, work: Stored, part: str, dtype: str) -> str:
        return self.arguments.pointer(work.prefix + part, dtype, work.targets[part])

    def _store_key(self, work: Stored, target: str, slots: str, slot: str, write: Write) -> None:
        """Word by word, as 16 tokens lie beside each other."""
        w, store = self.w, work.store
        group, halves = store.channels // store.halves, store.halves
        words = -(-work.heads.size // store.channels)
        base = whole(w, f"({slots} + {slot} // {BLOCK} * {BLOCK}) * {words * group} + {slot} % {BLOCK} * {group}")
        with w.block(f"for d in T.serial({words}):"):
            for number in range(group):
                channels = [f"d * {store.channels} + {half * group + number}" for half in range(halves)]
                w(f"{target}[{base} + d * {BLOCK * group} + {number}] = {write(channels)}")

    def _store_value(self, work: Stored, target: str, slots: str, slot: str, write: Write) -> None:
        w, store = self.w, work.store
        elements = value_width(work.heads.size, store) // store.halves
        line = f"({slots} + {slot} // {store.tokens} * {store.tokens}) * {elements} + {slot} % {store.tokens}"
        base = whole(w, line)
        if store.name == "f32":
            for c in range(0, elements, LANES):
                w.store(target, f"{base} + {c}", "f32", at("head", f"{self.start} + {c}"))
            return
        with w.block(f"for u in T.serial({elements // 16}):"), w.block("for c in T.serial(16):"):
            channels = [f"u * {16 * store.halves} + {16 * half} + c" for half in range(store.halves)]
            w(f"{target}[{base} + (u * 16 + c) * {store.tokens}] = {write(channels)}")
        if store.tokens > 1 and work.positions is None:  # a weight of 0 must not meet what has never been written
            length = self.arguments.size(work.heads.view.shape[2])
            last = f"if {slot} % 2 == 0 and {slot} + 1 == {length}:"
            with w.block(last), w.block(f"for d in T.serial({elements}):"):
                w(f"{target}[{base} + d * 2 + 1] = T.uint16(0)")

    def _plain(self, work: Plain, b: str, s: str, h: str) -> None:
        w, size = self.w, work.heads.size
        dtype = work.target.value.dtype
        target = self._input(work.target.value.name, STORAGE[dtype], work.target)
        view = View(work.target.value, work.heads.view.shape, work.strides)
        base = whole(w, self._index(view, (b, h, s)))
        with w.block(f"for d in T.serial({size}):"):
            w.store(target, f"{base} + d", dtype, f"head[{self.start} + d]", 1)

    def _index(self, view: View, places: tuple[str, ...]) -> str:
        """The element of a view; an axis of size 1 stays at its only place."""
        terms = []
        for place, size, stride in zip(places, view.shape, view.strides, strict=False):
            if size != 1 and stride != 0:
                terms.append(f"({place}) * {self.arguments.size(stride)}")
        return total(*terms, self.arguments.size(view.offset))

    def _input(self, name: str, dtype: str, binding: Data) -> str:
        return self.arguments.pointer(f"x_{name}", dtype, binding)


def _width(work: Work) -> int:
    """Channels of the thread's buffer that a head needs, padding included."""
    if isinstance(work, Queries):
        return max(work.heads.size, work.form.channels)
    return value_width(work.heads.size, work.store) if isinstance(work, Stored) else work.heads.size
