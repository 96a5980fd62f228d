"""The newest tokens of a state with a tail as they are, for calls of many tokens, which see more of them than a tail.

A ring keeps the newest `tail` tokens only. A call of many tokens therefore has all of its own and the tail before them
in temporaries that lie as a plain state does, from a whole tile on: `recall` takes the ring there before the call's
tokens overwrite it, the kernel that prepares heads adds the call's tokens, and `encode` makes codes of complete groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from irx.backends.regions.lowered import Binding, Call, Temporary
from irx.backends.tvm.arguments import Arguments, whole
from irx.backends.tvm.templates.append_tailed import Token, code_keys
from irx.backends.tvm.templates.attention_form import BLOCK, KEYS
from irx.backends.tvm.templates.attention_storage import STORAGES, Storage, Tailed
from irx.backends.tvm.writer import STORAGE, Writer, at, splat
from irx.ir.dims import Dim

SPAN = 3  # numbers of a row: its first position in the call, behind its last one, and that of slot 0


@dataclass(frozen=True)
class Recent:
    """Where they are: of `heads` heads of `batch` rows, in a call of `length` tokens at `positions` i64 [B, S]."""

    store: Tailed
    batch: Dim
    length: Dim
    heads: int
    k_dim: int
    v_dim: int
    positions: Binding
    state: dict[str, Binding]
    capacity: Binding

    @property
    def plain(self) -> Storage:
        """How tokens lie."""
        return STORAGES[self.store.dtype]

    @property
    def slots(self) -> Dim:
        """Of every head: for the call, the tail before it, and what fills the first tile and the last."""
        return (self.length + (self.store.tail + KEYS - 1)) // KEYS * KEYS + KEYS

    @property
    def v_width(self) -> int:
        """Channels of a value, padded."""
        return -(-self.v_dim // BLOCK) * BLOCK

    @cached_property
    def parts(self) -> dict[str, Binding]:
        """The keys and values."""
        size = self.batch * self.heads * self.slots * (4 if self.store.dtype == "f32" else 2)
        return {"k": Temporary("recent_k", size * self.k_dim), "v": Temporary("recent_v", size * self.v_width)}

    @property
    def spans(self) -> Temporary:
        """What is known of rows, i64 [B, SPAN]."""
        return Temporary("spans", self.batch * (8 * SPAN))


def recall(x: Recent) -> Call:
    """Find the spans, and take the ring to its slots. Values that weights of 0 meet become 0."""
    w, arguments = Writer(), Arguments()
    batch, length, slots = (arguments.size(n) for n in (x.batch, x.length, x.slots))
    arguments.pointer("pos", "int64", x.positions)
    arguments.pointer("spans", "int64", x.spans)
    dtype = STORAGE[x.store.dtype]
    for side in "kv":
        arguments.pointer(f"{side}_tail", dtype, x.state[f"{side}_tail"])
        arguments.pointer(f"recent_{side}", dtype, x.parts[side])
    with w.block(f"for b in T.serial({batch}):"):
        start, end = _span(w, length)
        first = whole(w, f"T.max({start} - {x.store.tail}, T.int64(0))")
        base = whole(w, f"{first} // {KEYS} * {KEYS}")
        with w.block("if tid == 0:"):
            for n, value in enumerate((start, end, base)):
                w(f"spans[b * {SPAN} + {n}] = {value}")
        with w.block(f"for turn in T.serial(({x.heads} - tid + nt - 1) // nt):"):
            head = whole(w, f"b * {x.heads} + tid + turn * nt")
            with w.block(f"for step in T.serial({start} - {first}):"):
                position = whole(w, f"{first} + step")
                _recall_key(w, x, head, position, f"({position} - {base})", slots)
                _recall_value(w, x, head, position, f"({position} - {base})", slots)
            with w.block(f"for slot in T.serial({first} - {base}):"):
                _clear(w, x, head, "slot", slots)
            _clear(w, x, head, f"({end} - {base})", slots)
    return arguments.call("tail_recall", w, "takes the newest tokens out of a ring")


def _span(w: Writer, length: str) -> tuple[str, str]:
    """(first position, behind the last) of row b in the call, zeros where it has none."""
    start = w.register("T.int64(1099511627776)", dtype="int64", lanes=1)
    end = w.register("T.int64(0)", dtype="int64", lanes=1)
    with w.block(f"for i in T.serial({length}):"):
        position = whole(w, f"pos[b * {length} + i]")
        with w.block(f"if {position} >= 0:"):
            w(f"{start} = T.min({start}, {position})")
            w(f"{end} = T.max({end}, {position} + 1)")
    w(f"{start} = T.min({start}, {end})")
    return start, end


def _recall_key(w: Writer, x: Recent, head: str, position: str, slot: str, slots: str) -> None:
    n, tail = x.plain.channels, x.store.tail
    ring = whole(w, f"{position} % {tail}")
    source = whole(w, f"({head} * {tail} + {ring} // {BLOCK} * {BLOCK}) * {x.k_dim} + {ring} % {BLOCK}")
    line = f"({head} * {slots} + {slot} // {BLOCK} * {BLOCK}) * {x.k_dim} + {slot} % {BLOCK} * {n}"
    target = whole(w, line)
    with w.block(f"for d in T.serial({x.k_dim // n}):"):
        for c in range(n):
            w(f"recent_k[{target} + d * {n * BLOCK} + {c}] = k_tail[{source} + (d * {n} + {c}) * {BLOCK}]")


def _recall_value(w: Writer, x: Recent, head: str, position: str, slot: str, slots: str) -> None:
    source = whole(w, f"({head} * {x.store.tail} + {position} % {x.store.tail}) * {x.v_width}")
    target = whole(w, _value_line(x, head, slot, slots))
    with w.block(f"for c in T.serial({x.v_width}):"):
        w(f"recent_v[{target} + c * {x.plain.tokens}] = v_tail[{source} + c]")


def _clear(w: Writer, x: Recent, head: str, slot: str, slots: str) -> None:
    target = whole(w, _value_line(x, head, slot, slots))
    zero = {"f32": "T.float32(0)", "bf16": "T.uint16(0)"}[x.store.dtype]
    with w.block(f"for c in T.serial({x.v_width}):"):
        w(f"recent_v[{target} + c * {x.plain.tokens}] = {zero}")


def _value_line(x: Recent, head: str, slot: str, slots: str) -> str:
    n = x.plain.tokens
    return f"({head} * {slots} + {slot} // {n} * {n}) * {x.v_width} + {slot} % {n}"


def encode(x: Recent) -> Call:
    """Codes of the keys whose groups the call has completed."""
    w, arguments = Writer(), Arguments()
    batch, slots = arguments.size(x.batch), arguments.size(x.slots)
    arguments.number("capacity", x.capacity)
    arguments.pointer("spans", "int64", x.spans)
    arguments.pointer("recent_k", x.plain.word, x.parts["k"])
    group = x.store.group
    with w.block(f"for b in T.serial({batch}):"):
        start, end, base = (whole(w, f"spans[b * {SPAN} + {n}]") for n in range(SPAN))
        count = whole(w, f"{end} // {group} - {start} // {group}")
        with w.block(f"for turn in T.serial(({count} * {x.heads} - tid + nt - 1) // nt):"):
            task = whole(w, "tid + turn * nt")
            head = whole(w, f"b * {x.heads} + {task} % {x.heads}")
            first = whole(w, f"({start} // {group} + {task} // {x.heads}) * {group}")
            line = whole(w, f"({head} * {slots} + {first} - {base}) * {x.k_dim // x.plain.channels}")
            token = Token(
                x.store, "", "", x.k_dim, head, "", lambda part, dtype: arguments.pointer(part, dtype, x.state[part])
            )
            code_keys(w, token, lambda j, channel, at_line=line: _lanes(w, x, at_line, j, channel), first)  # type: ignore[misc]
    return arguments.call("tail_encode", w, "makes codes of complete groups of keys")


def _lanes(w: Writer, x: Recent, line: str, j: int, channel: str) -> str:
    """A channel of block `j` of keys."""
    n = x.plain.channels
    words = at("recent_k", f"{line} + ({j * x.k_dim // n} + {channel} // {n}) * {BLOCK}")
    if n == 1:
        return w.register(words)
    half = splat(f'T.cast({channel} % 2 * 16, "int32")')
    bits = f"T.shift_left(T.shift_right({words}, {half}), T.broadcast(T.int32(16), 16))"
    return w.register(f'T.reinterpret("float32x16", {bits})')
