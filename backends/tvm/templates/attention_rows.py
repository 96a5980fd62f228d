"""The rows of logits that attention's log-sum-exp and statistics are made of, in a kernel that is being written.

A thread has the logits of one row and one head at a time, 16 keys beside each other, in a buffer of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from irx.backends.regions.lowered import Data, Refusal, Temporary
from irx.backends.tvm import vector_math
from irx.backends.tvm.arguments import Arguments, times, whole
from irx.backends.tvm.lanes import Lanes, load
from irx.backends.tvm.templates.rope import lanes_of
from irx.backends.tvm.writer import LANES, STORAGE, Writer, at, constant, splat
from irx.ir.dims import Dim
from irx.ir.graph import Node, Value

HIDDEN = "T.float32(-1e30)"
"""The logit of a key that is not seen: its share is 0, and no arithmetic makes it a nan."""


@dataclass
class Rows:
    """A kernel about q [B, H, S, D] and k [B, G, T, D]; `batch`, `rows` (S), `keys` (T) are texts of sizes.

    `room` is T rounded up to whole vectors.
    """

    node: Node
    w: Writer = field(default_factory=Writer)
    arguments: Arguments = field(default_factory=Arguments)

    def __post_init__(self) -> None:
        q, k = self.needed("q"), self.needed("k")
        self.heads, self.groups, self.channels = (number(size) for size in (q.shape[1], k.shape[1], q.shape[3]))
        self.shared = self.heads // self.groups
        self.batch, self.rows, self.keys = map(self.arguments.size, (q.shape[0], q.shape[2], k.shape[2]))
        self.padded: Dim = (k.shape[2] + (LANES - 1)) // LANES * LANES
        self.room = self.arguments.size(self.padded)

    def operand(self, name: str) -> Value | None:
        """An operand that may be missing, or that the op does not have."""
        return self.node.operand(name) if any(one.name == name for one in self.node.op.operands) else None

    def needed(self, name: str) -> Value:
        """An operand that is always there."""
        value = self.node.operand(name)
        assert value is not None
        return value

    def pointer(self, name: str, value: Value) -> str:
        """The buffer of an operand or a result."""
        return self.arguments.pointer(name, STORAGE[value.dtype], Data(value))

    def element(self, name: str, value: Value, index: str) -> str:
        """One element of an operand, as float32."""
        return load(self.w, self.pointer(name, value), index, value.dtype, 1)

    def own(self, name: str) -> str:
        """A row of float32 of the thread's own, from tid * room on."""
        return self.arguments.pointer(name, "float32", Temporary(name, self.padded * 4, per_thread=True))

    @contextmanager
    def blocks(self) -> Iterator[str]:
        """For the first of every 16 keys."""
        with self.w.block(f"for block in T.serial({self.room} // {LANES}):"):
            yield f"block * {LANES}"

    def logits(self, q_row: str, k_start: str, b: str, head: str, row: str) -> str:
        """Put the logits of a row of q and the keys from `k_start` on into the buffer `logits`; gives the largest."""
        w, start = self.w, f"tid * {self.room}"
        self.own("logits")
        top = w.register(HIDDEN, lanes=1)
        seen = self._seen(b, head, row)
        with w.block(f"for t in T.serial({self.room}):"):
            value = w.register(HIDDEN, lanes=1)
            with w.block(f"if t < {self.keys}:"), w.block(f"if {seen}:"):
                w(f"{value} = {self._logit(q_row, f'{k_start} + t', b, head, row)}")
            w(f"logits[{start} + t] = {value}")
            w(f"{top} = T.max({top}, {value})")
        return top

    def shares(self, shift: str) -> str:
        """Turn `logits` into exp(logit - shift); gives their sum."""
        w = self.w
        v, total = Lanes(w), w.register(constant(0.0))
        with self.blocks() as block:
            place = at("logits", f"tid * {self.room} + {block}")
            logit = v.let(place)
            share = vector_math.exp(w, v.let(f"{logit} - {splat(shift)}"))
            w(f"{place} = {v.select(f'{logit} > {splat(HIDDEN)}', share, v.f(0.0))}")
            w(f"{total} = {total} + {place}")
        return vector_math.sum_lanes(w, total)

    def _seen(self, b: str, head: str, row: str) -> str:
        """The condition under which key t is seen."""
        window, mask = self.node.attr("window") if self.operand("v") else None, self.operand("mask")
        terms = [f"t <= {row}"] if self.node.attr("causal") else []
        terms += [f"{row} - t < {window}"] if window is not None else []
        if mask is not None:
            terms.append(f"{self.pointer('mask', mask)}[{self._broadcast(mask, b, head, row)}] != T.uint8(0)")
        return " and ".join(terms) or "t >= 0"

    def _logit(self, q_row: str, k_row: str, b: str, head: str, row: str) -> str:
        """scale * (row of q, row of k), capped and with its bias."""
        w, count, q, k = self.w, lanes_of(self.channels), self.needed("q"), self.needed("k")
        total = w.register(constant(0.0, count), lanes=count)
        with w.block(f"for c in T.serial({self.channels // count}):"):
            x = load(w, self.pointer("q", q), f"({q_row}) * {self.channels} + c * {count}", q.dtype, count)
            y = load(w, self.pointer("k", k), f"({k_row}) * {self.channels} + c * {count}", k.dtype, count)
            w(f"{total} = {total} + {x} * {y}")
        value = f"{vector_math.sum_lanes(w, total, count)} * T.float32({self.node.attr('scale')!r})"
        cap, bias = self.node.attr("softcap") if self.operand("v") else None, self.operand("bias")
        if isinstance(cap, float):
            inner = w.register(f"{value} * T.float32({1 / cap!r})", lanes=1)
            value = f"{vector_math.tanh(w, inner, 1)} * T.float32({cap!r})"
        if bias is not None:
            added = self.element("bias", bias, self._broadcast(bias, b, head, row))
            value = f"T.max({value} + {added}, {HIDDEN})"
        return value

    def _broadcast(self, value: Value, b: str, head: str, row: str) -> str:
        """Where a mask or bias that broadcasts to [B, H, S, T] has what it says of a row and key t."""
        terms, step = [], "T.int64(1)"
        places = (b, head, row, "t")[4 - len(value.shape) :]
        for size, place in zip(reversed(value.shape), reversed(places), strict=True):
            if size != 1:
                terms.append(times(place, step))
                step = times(step, self.arguments.size(size))
        return " + ".join(terms) or "T.int64(0)"


def number(size: Dim) -> int:
    """A size that must be a number. Raises Refusal."""
    if not isinstance(size, int):
        raise Refusal(f"heads or channels that are no number: {size}")
    return size


def row_of(r: Rows, item: str) -> tuple[str, str, str]:
    """(b, head, row) of the number of a row of q."""
    per_batch = times(r.rows, f"T.int64({r.heads})")
    b, head = whole(r.w, f"{item} // ({per_batch})"), whole(r.w, f"{item} // {r.rows} % {r.heads}")
    return b, head, whole(r.w, f"{item} % {r.rows}")
