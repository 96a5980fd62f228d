"""Attention of one new token to codes in groups with a tail behind them (`irx.runtime.kv_tailed`).

A tile of 64 keys is either all codes or all in the tail. Steps of keys go into the queries and their lowest values into
one number per row, once for each group of tokens: sum over c of q_c (s_c code + z_c) = sum of (q_c s_c) code + q z.
Steps of values go into the weights, once for each group of channels, and lowest values are added once per tile.
"""

from __future__ import annotations

from typing import cast

from irx.backends.regions.lowered import Temporary
from irx.backends.tvm.arguments import whole
from irx.backends.tvm.templates.attention_form import BLOCK, KEYS, Form
from irx.backends.tvm.templates.attention_kernel import AttentionKernel
from irx.backends.tvm.templates.attention_storage import Tailed
from irx.backends.tvm.templates.attention_tile import Places, softmax
from irx.backends.tvm.templates.instructions import prefetch, summed
from irx.backends.tvm.writer import STORAGE, Writer, at, constant, splat


class TailedKernel(AttentionKernel):
    """Reads codes and tails; there is one query in every row."""

    def read(self) -> None:
        """Declare what tiles read."""
        super().read()
        width, dtype = self.folded_width()
        self.arguments.pointer("folded", dtype, Temporary("folded", width * 4, per_thread=True))
        self.folded = whole(self.w, f"tid * {width}")

    def folded_width(self) -> tuple[int, str]:
        """Elements of `folded` and their dtype."""
        f = self.f
        return f.rows * max(f.channels, KEYS * (f.v_dim // self.store.group)), "float32"

    def dtype_of(self, part: str) -> str:
        """How a part of the state lies in memory."""
        return STORAGE[self.store.dtype] if part.endswith("tail") else super().dtype_of(part)

    @property
    def store(self) -> Tailed:
        """The storage."""
        return cast("Tailed", self.f.store)

    def fold(self, a: Places, b: str, g: str, first: str, unmasked: str) -> None:
        """One tile."""
        w, tail = self.w, self.store.tail
        head = whole(w, f"({b}) * {self.f.groups} + ({g})")
        position = whole(w, self.position(b, first))
        coded_keys = whole(w, f"{position} - {position} % {tail}")
        coded_values = whole(w, f"T.max({position} + 1 - {tail} - {a.first}, T.int64(0))")
        with w.block(f"if {a.first} < {coded_keys}:"):
            self._scores(a, head, coded=True)
        with w.block(f"if {a.first} >= {coded_keys}:"):
            self._scores(a, head, coded=False)
        with w.block(f"for r in T.serial({a.count}):"):
            softmax(w, self.f, a, self.row(b, g, first), unmasked)
        used = whole(w, f"T.min({a.end} - {a.first}, {KEYS})")
        limit = whole(w, f"T.min({coded_values}, {used})")
        with w.block(f"for chunk in T.serial(({a.count} + {self.f.rows - 1}) // {self.f.rows}):"):
            with w.block(f"if {limit} > 0:"):
                self._coded_values(a, head, limit)
            with w.block(f"if {limit} < {used}:"):
                self._tail_values(a, head, limit, used)

    def _scores(self, a: Places, head: str, *, coded: bool) -> None:
        f, w = self.f, self.w
        together = min(f.blocks, min(self.store.group, KEYS) // BLOCK)
        with w.block(f"for chunk in T.serial(({a.count} + {f.rows - 1}) // {f.rows}):"):
            row = whole(w, f"{a.q} + chunk * {f.rows * f.q_width}")
            out = whole(w, f"{a.s} + chunk * {f.rows * KEYS}")
            for part in range(0, KEYS // BLOCK, together):
                if coded:
                    sums = self._coded_scores(a, head, row, part, together)
                else:
                    sums = self._tail_scores(a, head, row, part, together)
                with w.block(f"for j in T.unroll({together}):"):
                    for i, total in enumerate(sums):
                        place = f"{out} + {i * KEYS + part * BLOCK} + j * {BLOCK}"
                        w(f"{at('s', place)} = {at(total, f'j * {BLOCK}')}")

    def _coded_scores(self, a: Places, head: str, row: str, part: int, blocks: int) -> list[str]:
        f, w, store = self.f, self.w, self.store
        sums = self._begun(blocks, self._fold_queries(row, self._group(a, head, part)))
        start = whole(w, f"{a.k} + ({a.first} // {BLOCK} + {part}) * {f.steps * BLOCK}")
        with w.block(f"for d in T.serial({f.steps}):"), w.block(f"for j in T.unroll({blocks}):"):
            index = f"{start} + (j * {f.steps} + d) * {BLOCK}"
            words = w.register(at("k", index), dtype="int32")
            if f.fetches:
                w(prefetch("k", f"{index} + {a.ahead} * {f.steps}"))
            for number, text in enumerate(store.lanes(words)):
                lanes = w.register(text)
                for i, total in enumerate(sums):
                    q = splat(f"folded[{self.folded} + {i * f.channels} + d * {store.channels} + {number}]")
                    value = at(total, f"j * {BLOCK}")
                    w(f"{value} = {value} + {q} * {lanes}")
        return sums

    def _group(self, a: Places, head: str, part: int) -> str:
        """Where the steps of the group of tokens begin that block `part` of a tile is in."""
        group = self.store.group
        number = whole(self.w, f"({a.first} + {part * BLOCK}) // {group}")
        groups = f"(({self.capacity} + {group - 1}) // {group})"
        return whole(self.w, f"({head} * {groups} + {number}) * {self.f.channels}")

    def _grid(self, side: str, place: str) -> tuple[str, str]:
        """Registers of 16 steps and 16 lowest values."""
        names = (f"{side}_scale", f"{side}_zero")
        step, low = (self.w.register(f'T.cast({at(name, place)}, "float32x16")') for name in names)
        return step, low

    def _fold_queries(self, row: str, place: str) -> list[str]:
        """Queries times steps go to `folded`; gives what the lowest values of a group add to each row."""
        f, w = self.f, self.w
        added = [w.register(constant(0.0)) for _ in range(f.rows)]
        with w.block(f"for c in T.serial({f.channels // BLOCK}):"):
            step, low = self._grid("k", f"{place} + c * {BLOCK}")
            for i, total in enumerate(added):
                q = w.register(at("q", f"{row} + {i * f.q_width} + c * {BLOCK}"))
                w(f"{at('folded', f'{self.folded} + {i * f.channels} + c * {BLOCK}')} = {q} * {step}")
                w(f"{total} = {total} + {q} * {low}")
        return [w.register(summed(total), lanes=1) for total in added]

    def _begun(self, blocks: int, values: list[str]) -> list[str]:
        w = self.w
        sums = [w.local(blocks * BLOCK) for _ in values]
        with w.block(f"for j in T.unroll({blocks}):"):
            for total, value in zip(sums, values, strict=True):
                w(f"{at(total, f'j * {BLOCK}')} = {splat(value)}")
        return sums

    def _tail_scores(self, a: Places, head: str, row: str, part: int, blocks: int) -> list[str]:
        f, w, store = self.f, self.w, self.store
        sums = self._begun(blocks, ["T.float32(0)"] * f.rows)
        first = f"({a.first} % {store.tail} + {part * BLOCK})"
        start = whole(w, f"({head} * {store.tail} + {first}) * {f.channels}")
        with w.block(f"for d in T.serial({f.channels}):"), w.block(f"for j in T.unroll({blocks}):"):
            keys = w.load("k_tail", f"{start} + (j * {f.channels} + d) * {BLOCK}", store.dtype)
            for i, total in enumerate(sums):
                value = at(total, f"j * {BLOCK}")
                w(f"{value} = {value} + {splat(f'q[{row} + {i * f.q_width} + d]')} * {keys}")
        return sums

    def _coded_values(self, a: Places, head: str, limit: str) -> None:
        f, w, store = self.f, self.w, self.store
        count = f.v_dim // store.group
        added = self._fold_weights(a, head, limit, count)
        for first, width in f.spread:
            inside = [v for v in range(width) if (first + v) * BLOCK < f.v_dim]
            sums = self._outputs(a, first, width)
            for v in inside:
                for i, total in enumerate(sums):
                    value = at(total, str(v * BLOCK))
                    w(f"{value} = {value} + {splat(added[i][(first + v) * BLOCK // store.group])}")
            line = whole(w, f"{a.v} + {a.first} * {f.v_elements} + {first * BLOCK // store.halves}")
            with w.block(f"for t in T.serial({limit}):"):
                for c in range(width // store.halves):
                    self._add_codes(sums, f"{line} + t * {f.v_elements} + {c * BLOCK}", first, c, count, a.ahead)
            self._keep(a, sums, first, width)

    def _add_codes(self, sums: list[str], place: str, first: int, c: int, groups: int, ahead: str) -> None:
        """One vector of codes of token `t`: `halves` vectors of channels."""
        f, w, store = self.f, self.w, self.store
        if f.fetches and c % store.per_line == 0:
            w(prefetch("v", f"{place} + {ahead} * {f.v_elements}"))
        found = w.register(at("v", place), dtype="uint8")
        for half, text in enumerate(store.values(found)):
            number = c * store.halves + half
            if (first + number) * BLOCK >= f.v_dim:
                continue
            lanes = w.register(text)
            group = (first + number) * BLOCK // store.group
            for i, total in enumerate(sums):
                weight = splat(f"folded[{self.folded} + {(i * groups + group) * KEYS} + t]")
                value = at(total, str(number * BLOCK))
                w(f"{value} = {value} + {weight} * {lanes}")

    def _fold_weights(self, a: Places, head: str, limit: str, count: int) -> list[list[str]]:
        """Weights times steps go to `folded`, for each group of channels; gives what lowest values add to rows."""
        f, w = self.f, self.w
        bound = splat(f'T.cast({limit}, "int32")')
        made: list[list[str]] = []
        for i in range(f.rows):
            made.append([])
            for g in range(count):
                added = w.register(constant(0.0))
                place = whole(w, f"({head} * {count} + {g}) * {self.capacity} + {a.first}")
                with w.block(f"for j in T.unroll({KEYS // BLOCK}):"):
                    keys = f'T.ramp(T.cast(j * {BLOCK}, "int32"), 1, 16) < {bound}'
                    found = at("s", f"{a.s} + chunk * {f.rows * KEYS} + {i * KEYS} + j * {BLOCK}")
                    weight = w.register(f"T.Select({keys}, {found}, {constant(0.0)})")
                    step, low = self._grid("v", f"{place} + j * {BLOCK}")
                    w(f"{at('folded', f'{self.folded} + {(i * count + g) * KEYS} + j * {BLOCK}')} = {weight} * {step}")
                    w(f"{added} = {added} + {weight} * {low}")
                made[-1].append(w.register(summed(added), lanes=1))
        return made

    def _tail_values(self, a: Places, head: str, start: str, used: str) -> None:
        f, w, store = self.f, self.w, self.store
        width = -(-f.v_dim // BLOCK) * BLOCK
        line = whole(w, f"({head} * {store.tail} + {a.first} % {store.tail}) * {width}")
        weights = whole(w, f"{a.s} + chunk * {f.rows * KEYS}")
        for first, count in f.spread:
            inside = min(count, width // BLOCK - first)
            sums = self._outputs(a, first, count)
            with w.block(f"for step in T.serial({used} - {start}):"):
                t = whole(w, f"{start} + step")
                for v in range(inside):
                    found = w.load("v_tail", f"{line} + {t} * {width} + {(first + v) * BLOCK}", store.dtype)
                    for i, total in enumerate(sums):
                        value = at(total, str(v * BLOCK))
                        w(f"{value} = {value} + {splat(f's[{weights} + {i * KEYS} + {t}]')} * {found}")
            self._keep(a, sums, first, count)

    def _outputs(self, a: Places, first: int, count: int) -> list[str]:
        """`count` vectors of the rows' outputs, one small buffer a row."""
        return _moved(self.w, self.f, a, [self.w.local(count * BLOCK) for _ in range(self.f.rows)], first, count, True)

    def _keep(self, a: Places, sums: list[str], first: int, count: int) -> None:
        _moved(self.w, self.f, a, sums, first, count, False)


def _moved(w: Writer, f: Form, a: Places, sums: list[str], first: int, count: int, load: bool) -> list[str]:
    start = whole(w, f"{a.sums.o} + chunk * {f.rows * f.v_width} + {first * BLOCK}")
    for v in range(count):
        for i, total in enumerate(sums):
            own, out = at(total, str(v * BLOCK)), at("o", f"{start} + {i * f.v_width + v * BLOCK}")
            w(f"{own} = {out}" if load else f"{out} = {own}")
    return sums
