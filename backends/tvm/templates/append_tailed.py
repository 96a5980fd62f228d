"""Tokens for states with a tail: into the ring as they are, as codes when their group is complete.

Codes are made as `irx.runtime.kv_tailed` makes them, by the same arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from irx.backends.tvm.arguments import whole
from irx.backends.tvm.templates.append_element import clipped, half, next_half
from irx.backends.tvm.templates.attention_form import BLOCK, value_width
from irx.backends.tvm.templates.attention_storage import Tailed
from irx.backends.tvm.templates.instructions import reduced
from irx.backends.tvm.writer import STORAGE, Writer, at, constant, splat


@dataclass(frozen=True)
class Token:
    """One head of a token in `buffer[start:]`, of `size` channels, for a slot of head `head` among those of all rows.

    `pointer(part, dtype)` declares an array of the state, `k_scale` say, and gives its name. In a call of many tokens
    those from position `since` on go into the ring, and groups of keys are coded afterwards (`recent`).
    """

    store: Tailed
    buffer: str
    start: str
    size: int
    head: str
    slot: str
    pointer: Callable[[str, str], str]
    since: str = ""

    @property
    def stays(self) -> str:
        """Whether no later token of the call takes the place in the ring."""
        return f"{self.slot} >= {self.since}" if self.since else "T.bool(True)"


def store_key(w: Writer, x: Token) -> None:
    """Into the ring; the last key of a group makes it codes."""
    tail, group = x.store.tail, x.store.group
    name = x.pointer("k_tail", STORAGE[x.store.dtype])
    slot = whole(w, f"{x.slot} % {tail}")
    base = whole(w, f"({x.head} * {tail} + {slot} // {BLOCK} * {BLOCK}) * {x.size} + {slot} % {BLOCK}")
    with w.block(f"if {x.stays}:"), w.block(f"for d in T.serial({x.size}):"):
        w.store(name, f"{base} + d * {BLOCK}", x.store.dtype, f"{x.buffer}[{x.start} + d]", 1)
    if x.since:
        return
    with w.block(f"if ({x.slot} + 1) % {group} == 0:"):
        first = whole(w, f"{x.slot} + 1 - {group}")
        source = whole(w, f"({x.head} * {tail} + {first} % {tail}) * {x.size}")
        code_keys(w, x, lambda j, c: w.load(name, f"{source} + ({j * x.size} + {c}) * {BLOCK}", x.store.dtype), first)


def code_keys(w: Writer, x: Token, lanes_at: Callable[[int, str], str], first: str) -> None:
    """The keys of slots from `first` on, a group of them, channel by channel.

    `lanes_at(block, channel)` gives 16 of them.
    """
    store, blocks = x.store, x.store.group // BLOCK
    codes = x.pointer("k", "uint8")
    words = x.size // store.channels
    groups = f"((capacity + {store.group - 1}) // {store.group})"
    place = whole(w, f"({x.head} * {groups} + {first} // {store.group}) * {x.size}")
    target = whole(w, f"({x.head} * (capacity // {BLOCK}) + {first} // {BLOCK}) * {words * BLOCK * 4}")
    with w.block(f"for word in T.serial({words}):"), w.block("for byte in T.serial(4):"):
        packed = [w.register("T.broadcast(T.int32(0), 16)", dtype="int32") for _ in range(blocks)]
        for i in range(8 // store.bits):
            channel = whole(w, f"word * {store.channels} + {4 * i} + byte")
            lanes = [lanes_at(j, channel) for j in range(blocks)]
            low, inverse, step = _grid(w, lanes, store.bits)
            w(f'{x.pointer("k_scale", "float16")}[{place} + {channel}] = T.cast({step}, "float16")')
            w(f'{x.pointer("k_zero", "float16")}[{place} + {channel}] = T.cast({low}, "float16")')
            for block, value in zip(packed, lanes, strict=True):
                w(f"{block} = {block} + {_shifted(_codes(value, low, inverse, store.bits), store.bits * i)}")
        for j, block in enumerate(packed):
            line = f"{target} + ({j * words} + word) * {BLOCK * 4} + byte"
            lanes_of = w.local(BLOCK, "int32")
            w(f"{at(lanes_of, '0')} = {block}")
            with w.block(f"for lane in T.serial({BLOCK}):"):
                w(f'{codes}[{line} + lane * 4] = T.cast({lanes_of}[lane], "uint8")')


def store_value(w: Writer, x: Token) -> None:
    """Into the ring, and as codes."""
    store, per = x.store, x.store.halves
    width = -(-x.size // BLOCK) * BLOCK
    ring = x.pointer("v_tail", STORAGE[store.dtype])
    base = whole(w, f"({x.head} * {store.tail} + {x.slot} % {store.tail}) * {width}")
    vectors = [w.register(at(x.buffer, f"{x.start} + {c}")) for c in range(0, width, BLOCK)]
    with w.block(f"if {x.stays}:"):
        for c, vector in enumerate(vectors):
            w.store(ring, f"{base} + {c * BLOCK}", store.dtype, vector)
    grids = [_value_grid(w, x, vectors, g) for g in range(x.size // store.group)]
    codes = x.pointer("v", "uint8")
    elements = value_width(x.size, store) // per
    line = whole(w, f"({x.head} * capacity + {x.slot}) * {elements}")
    for u in range(elements // BLOCK):
        packed = w.register("T.broadcast(T.int32(0), 16)", dtype="int32")
        for i, vector in enumerate(vectors[u * per : (u + 1) * per]):
            low, inverse = grids[(u * per + i) * BLOCK // store.group]
            w(f"{packed} = {packed} + {_shifted(_codes(vector, low, inverse, store.bits), store.bits * i)}")
        w(f'{at(codes, f"{line} + {u * BLOCK}")} = T.cast({packed}, "uint8x16")')


def _value_grid(w: Writer, x: Token, vectors: list[str], g: int) -> tuple[str, str]:
    """(lowest value, 1 / step) of a group of channels, which are stored."""
    store = x.store
    own = vectors[g * store.group // BLOCK : (g + 1) * store.group // BLOCK]
    low, inverse, step = _grid(w, own, store.bits)
    place = f"({x.head} * {x.size // store.group} + {g}) * capacity + {x.slot}"
    w(f'{x.pointer("v_scale", "float16")}[{place}] = T.cast({step}, "float16")')
    w(f'{x.pointer("v_zero", "float16")}[{place}] = T.cast({low}, "float16")')
    return low, inverse


def _grid(w: Writer, lanes: list[str], bits: int) -> tuple[str, str, str]:
    """(lowest value, 1 / step, step) for all of these lanes, as `irx.ops.precision.token_codes` finds them."""
    top = f"T.float32({2**bits - 1})"
    least, most = lanes[0], lanes[0]
    for vector in lanes[1:]:
        least, most = f"T.min({least}, {vector})", f"T.max({most}, {vector})"
    least, most = (w.register(reduced(x, f"f{name}"), lanes=1) for x, name in ((least, "min"), (most, "max")))
    for place in (least, most):
        w(f"{place} = {clipped(place)}")
    low = half(w, least)
    with w.block(f"if {low} > {least}:"):
        w(f"{low} = {half(w, f'{low} - {next_half(low)}')}")
    step = half(w, f"({most} - {low}) / {top}")
    with w.block(f"if {step} * {top} + {low} < {most}:"):
        w(f"{step} = {half(w, f'{step} + {next_half(step)}')}")
    with w.block(f"if {step} == T.float32(0):"):
        w(f"{step} = T.float32(1)")
    return low, w.register(f"T.float32(1) / {step}", lanes=1), step


def _codes(value: str, low: str, inverse: str, bits: int) -> str:
    number = f"T.nearbyint(({value} - {splat(low)}) * {splat(inverse)})"
    bounded = f"T.max(T.min({number}, {constant(float(2**bits - 1))}), {constant(0.0)})"
    return f'T.cast({bounded}, "int32x16")'


def _shifted(codes: str, bits: int) -> str:
    return f"T.shift_left({codes}, T.broadcast(T.int32({bits}), 16))" if bits else codes
