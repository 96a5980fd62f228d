"""Attention of many new tokens to codes with a tail: each query sees old tokens as codes and the newest as they are.

Codes of a tile of keys, and of its values, become a plain tile of 64 tokens in a buffer of the thread, once for a block
of queries; the newest tokens lie plainly anyway (`recent`). Both are then multiplied as plain keys and values are.
A tile of keys is one or the other to a query, so that scores are made twice only where queries of a block differ; among
values the border moves with the query, so weights are divided there: those of codes, and those of plain values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from irx.backends.regions.lowered import Temporary
from irx.backends.tvm.arguments import whole
from irx.backends.tvm.templates.attention_form import BLOCK, KEYS, Form
from irx.backends.tvm.templates.attention_kernel import AttentionKernel, Sources
from irx.backends.tvm.templates.attention_tile import Places, scores, softmax, values
from irx.backends.tvm.templates.recent import SPAN, Recent
from irx.backends.tvm.templates.tile_codes import CodedTiles
from irx.backends.tvm.writer import at, splat

FAR = "T.int64(1099511627776)"


@dataclass(frozen=True)
class _Seen:
    """Of the queries of a block: the least and the most keys seen as codes, and values."""

    fewest_keys: str
    most_keys: str
    fewest_values: str
    most_values: str


class MixedKernel(AttentionKernel):
    """Reads codes and recent tokens. The form is that of plain keys and values."""

    def __init__(self, f: Form, x: Sources, rows: int) -> None:
        super().__init__(f, x)
        assert x.recent is not None
        self.recent: Recent = x.recent
        self.rows = rows

    def read(self) -> None:
        """Declare what tiles read."""
        f, x, add, recent = self.f, self.x, self.arguments.pointer, self.recent
        self.capacity = self.arguments.number("capacity", x.capacity)
        self.slots = self.arguments.size(recent.slots)
        add("q", "float32" if f.dot == "fma" else "int32", x.q)
        add("spans", "int64", recent.spans)
        add("recent_k", f.store.word, recent.parts["k"])
        add("recent_v", f.store.value, recent.parts["v"])
        size = 4 // f.store.channels
        self.k_tile, self.v_tile = KEYS * f.steps, KEYS // f.store.tokens * f.v_elements
        add("tile_k", f.store.word, Temporary("tile_k", KEYS * f.channels * size, per_thread=True))
        add("tile_v", f.store.value, Temporary("tile_v", KEYS * f.v_width * size, per_thread=True))
        self.codes = CodedTiles(self.w, f, recent, self.capacity)
        self.codes.declare(self.arguments)
        if x.table is not None:
            add("table", "float32", x.table[0])

    def fold(self, a: Places, b: str, g: str, first: str, unmasked: str) -> None:
        """One tile for the queries from `first` on."""
        f, w = self.f, self.w
        head = whole(w, f"({b}) * {f.groups} + ({g})")
        seen = self._seen(b, first, a)
        coded, plain = self._sources(a, b, head)
        self._scores(a, coded, plain, head, seen, b, first)
        with w.block(f"for r in T.serial({a.count}):"):
            softmax(w, f, a, self.row(b, g, first), unmasked)
        self._values(a, coded, plain, head, seen, b, first)

    def _seen(self, b: str, first: str, a: Places) -> _Seen:
        w, tail = self.w, self.recent.store.tail
        fewest_keys, fewest_values = (w.register(FAR, dtype="int64", lanes=1) for _ in range(2))
        most_keys, most_values = (w.register("T.int64(0)", dtype="int64", lanes=1) for _ in range(2))
        with w.block(f"for i in T.serial({a.count} // {self.f.shared}):"):
            position = whole(w, self.position(b, f"{first} + i"))
            with w.block(f"if {position} >= 0:"):
                keys = whole(w, _coded_keys(position, tail))
                these = whole(w, _coded_values(position, tail))
                for low, high, count in ((fewest_keys, most_keys, keys), (fewest_values, most_values, these)):
                    w(f"{low} = T.min({low}, {count})")
                    w(f"{high} = T.max({high}, {count})")
        return _Seen(fewest_keys, most_keys, fewest_values, most_values)

    def _sources(self, a: Places, b: str, head: str) -> tuple[Places, Places]:
        """The tile as codes say, and as it is."""
        f, w = self.f, self.w
        base = whole(w, f"spans[({b}) * {SPAN} + 2]")
        coded = replace(
            a,
            source="tile_",
            k=whole(w, f"tid * {self.k_tile} - {a.first} * {f.steps}"),
            v=whole(w, f"tid * {self.v_tile} - {a.first} // {f.store.tokens} * {f.v_elements}"),
        )
        slot = whole(w, f"{head} * {self.slots} - {base}")
        plain = replace(
            a,
            source="recent_",
            k=whole(w, f"{slot} * {f.steps}"),
            v=whole(w, f"({slot} // {f.store.tokens}) * {f.v_elements}"),
        )
        return coded, plain

    def _scores(self, a: Places, coded: Places, plain: Places, head: str, seen: _Seen, b: str, first: str) -> None:
        """Scores of codes, of plain keys, or both, of which each row keeps its own."""
        f, w = self.f, self.w
        as_codes, as_plain = f"{a.first} < {seen.most_keys}", f"{a.first} >= {seen.fewest_keys}"
        with w.block(f"if {as_codes}:"):
            self.codes.keys(head, a.first)
            scores(w, f, coded)
        other = whole(w, f"{a.s} + {self.rows * KEYS}")
        with w.block(f"if {as_plain}:"):
            scores(w, f, replace(plain, s=whole(w, f"T.if_then_else({as_codes}, {other}, {a.s})")))
        with w.block(f"if {as_codes} and {as_plain}:"), w.block(f"for r in T.serial({a.count}):"):
            position = whole(w, self.position(b, f"({first} + r // {f.shared})"))
            with w.block(f"if {a.first} >= {_coded_keys(position, self.recent.store.tail)}:"):
                for j in range(0, KEYS, BLOCK):
                    w(f"{at('s', f'{a.s} + r * {KEYS} + {j}')} = {at('s', f'{other} + r * {KEYS} + {j}')}")

    def _values(self, a: Places, coded: Places, plain: Places, head: str, seen: _Seen, b: str, first: str) -> None:
        """Values of codes, plain ones, or both, with the weights that are theirs."""
        f, w = self.f, self.w
        as_codes, as_plain = f"{a.first} < {seen.most_values}", f"{a.first} + {KEYS} > {seen.fewest_values}"
        other_s, other_p = whole(w, f"{a.s} + {self.rows * KEYS}"), whole(w, f"{a.p} + {self.rows * KEYS // 2}")
        with w.block(f"if {as_codes} and {as_plain}:"), w.block(f"for r in T.serial({a.count}):"):
            position = whole(w, self.position(b, f"({first} + r // {f.shared})"))
            count = _coded_values(position, self.recent.store.tail)
            limit = w.register(f'T.cast({count} - {a.first}, "int32")', dtype="int32", lanes=1)
            if f.dot == "dpbf16":
                self._divide_pairs(f"{a.p} + r * {KEYS // 2}", f"{other_p} + r * {KEYS // 2}", limit)
            else:
                self._divide(f"{a.s} + r * {KEYS}", f"{other_s} + r * {KEYS}", limit)
        with w.block(f"if {as_codes}:"):
            self.codes.values(head, a.first)
            values(w, f, coded)
        with w.block(f"if {as_plain}:"):
            s, p = (whole(w, f"T.if_then_else({as_codes}, {x}, {y})") for x, y in ((other_s, a.s), (other_p, a.p)))
            values(w, f, replace(plain, s=s, p=p))

    def _divide(self, place: str, other: str, limit: str) -> None:
        """Weights of the tile's first `limit` keys stay, the others go to `other`."""
        w, zero = self.w, "T.broadcast(T.float32(0), 16)"
        for j in range(0, KEYS, BLOCK):
            weight = w.register(at("s", f"{place} + {j}"))
            mine = f"T.ramp(T.int32({j}), 1, 16) < {splat(limit)}"
            w(f"{at('s', f'{other} + {j}')} = T.Select({mine}, {zero}, {weight})")
            w(f"{at('s', f'{place} + {j}')} = T.Select({mine}, {weight}, {zero})")

    def _divide_pairs(self, place: str, other: str, limit: str) -> None:
        """As `_divide`, of pairs."""
        w, zero = self.w, "T.broadcast(T.int32(0), 16)"
        for j in range(0, KEYS // 2, BLOCK):
            pairs = w.register(at("p", f"{place} + {j}"), dtype="int32")
            low, high = (f"T.ramp(T.int32({2 * j + n}), 2, 16) < {splat(limit)}" for n in range(2))
            masks = (
                f"T.Select({low}, {splat('T.int32(65535)')}, {zero})",
                f"T.Select({high}, {splat('T.int32(-65536)')}, {zero})",
            )
            mine = w.register(f"T.bitwise_or({masks[0]}, {masks[1]})", dtype="int32")
            w(f"{at('p', f'{other} + {j}')} = T.bitwise_and({pairs}, T.bitwise_not({mine}))")
            w(f"{at('p', f'{place} + {j}')} = T.bitwise_and({pairs}, {mine})")


def _coded_keys(position: str, tail: int) -> str:
    """How many keys the query at a position sees as codes."""
    return f"({position} - {position} % {tail})"


def _coded_values(position: str, tail: int) -> str:
    """How many values."""
    return f"T.max({position} + {1 - tail}, T.int64(0))"
