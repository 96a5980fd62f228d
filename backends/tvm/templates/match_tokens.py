"""Which tokens to merge, in four kernels: unit keys, the best partner of each odd token, its rank, and the lists.

units      keys [B, G, S, D] -> unit [B, S, G * D] of length 1 over all heads
partners   the even token whose key is most like an odd one's, and the odd one's score
ranks      1 for the odd tokens with the `count` best scores
lists      index_from, index_to, slots
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from irx.backends.regions.lowered import Call, Data, Temporary
from irx.backends.regions.matching import Match
from irx.backends.tvm import vector_math
from irx.backends.tvm.arguments import Arguments, times, whole
from irx.backends.tvm.lanes import load
from irx.backends.tvm.templates.conv_shape import share
from irx.backends.tvm.templates.rope import lanes_of
from irx.backends.tvm.writer import STORAGE, Writer, at, constant, splat
from irx.ir.graph import Node

_TINY = 1e-12
_WORST = -2.0  # below every cosine
_PADDING = 3e38  # the score of a token of size 0, which goes first


def match_calls(node: Node) -> tuple[Call, ...]:
    """`match_tokens`."""
    m = _Match.of(node)
    return m.units(), m.partners(), m.ranks(), m.lists()


class _Match(Match):
    """The kernels of the op."""

    def buffer(self, name: str) -> tuple[str, Temporary]:
        """What one kernel leaves for the next: its dtype, and what it is bound to."""
        dtype, bytes = {"unit": ("float32", 4 * self.width), "score": ("float32", 4)}.get(name, ("int64", 8))
        return dtype, Temporary(name, self.tokens * bytes)

    def begin(self, *names: str) -> tuple[Writer, Arguments, str, str]:
        """A kernel on these temporaries, with the texts of the batch and the length."""
        arguments = Arguments()
        for name in names:
            arguments.pointer(name, *self.buffer(name))
        return Writer(), arguments, arguments.size(self.keys.shape[0]), arguments.size(self.keys.shape[2])

    def units(self) -> Call:
        """Keys of length 1, all heads of a token beside each other."""
        w, arguments, batch, length = self.begin("unit")
        arguments.pointer("keys", STORAGE[self.keys.dtype], Data(self.keys))
        count = lanes_of(self.channels)
        with w.block(share(times(batch, length))):
            first = whole(w, f"(item // {length} * {self.heads} * {length} + item % {length}) * {self.channels}")
            total = w.register(constant(0.0, count), lanes=count)
            with self._elements(w, first, length, count) as (x, _):
                w(f"{total} = {total} + {x} * {x}")
            norm = w.register(f"T.sqrt({vector_math.sum_lanes(w, total, count)})", lanes=1)
            factor = w.register(f"T.float32(1) / T.max({norm}, T.float32({_TINY}))", lanes=1)
            with self._elements(w, first, length, count) as (x, place):
                w(f"{at('unit', f'item * {self.width} + {place}', count)} = {x} * {splat(factor, count)}")
        return arguments.call("match_units", w, "keys of length 1")

    @contextmanager
    def _elements(self, w: Writer, first: str, length: str, lanes: int) -> Iterator[tuple[str, str]]:
        """Vectors of a token's key, head after head, each with its place among all heads."""
        with w.block(f"for g in T.serial({self.heads}):"), w.block(f"for c in T.serial({self.channels // lanes}):"):
            source = f"{first} + g * {length} * {self.channels} + c * {lanes}"
            yield load(w, "keys", source, self.keys.dtype, lanes), f"g * {self.channels} + c * {lanes}"

    def partners(self) -> Call:
        """The best partner of each odd token, and how much it is worth merging."""
        w, arguments, batch, length = self.begin("unit", "score", "into_of")
        sizes = arguments.pointer("sizes", STORAGE[self.sizes.dtype], Data(self.sizes))
        half = whole(w, f"T.max({length} - {self.odd} + 1, T.int64(0)) // 2")
        with w.block(share(f"{batch} * {half}")):
            start = whole(w, f"item // {half} * {length}")
            token = whole(w, f"{start} + {self.odd} + item % {half} * 2")
            best = w.register("T.float32(-3)", lanes=1)
            into = w.register("T.int64(0)", dtype="int64", lanes=1)
            with w.block(f"for j in T.serial(T.max({length} - {self.even} + 1, T.int64(0)) // 2):"):
                other = whole(w, f"{start} + {self.even} + j * 2")
                like = self._likeness(w, token, other)
                real = f"{load(w, sizes, other, self.sizes.dtype, 1)} > T.float32(0)"
                w(f"{like} = T.Select({real}, {like}, T.float32({_WORST}))")
                with w.block(f"if {like} > {best}:"):
                    w(f"{best} = {like}")
                    w(f"{into} = {other} - {start}")
            w(f"into_of[{token}] = {into}")
            self._score(w, arguments, token, best)
        return arguments.call("match_partners", w, "the best partner of each odd token")

    def _score(self, w: Writer, arguments: Arguments, token: str, best: str) -> None:
        if self.received is not None:
            received = arguments.pointer("received", STORAGE[self.received.dtype], Data(self.received))
            got = load(w, received, token, self.received.dtype, 1)
            w(f"{best} = {best} - T.float32({self.alpha!r}) * {got}")
        real = f"{load(w, 'sizes', token, self.sizes.dtype, 1)} > T.float32(0)"
        w(f"score[{token}] = T.Select({real}, {best}, T.float32({_PADDING}))")

    def _likeness(self, w: Writer, token: str, other: str) -> str:
        """The cosine of two tokens' keys, a register."""
        count = lanes_of(self.width)
        total = w.register(constant(0.0, count), lanes=count)
        with w.block(f"for c in T.serial({self.width // count}):"):
            x, y = (at("unit", f"{t} * {self.width} + c * {count}", count) for t in (token, other))
            w(f"{total} = {total} + {x} * {y}")
        return w.register(vector_math.sum_lanes(w, total, count), lanes=1)

    def ranks(self) -> Call:
        """1 for the tokens that go, 0 for all others."""
        w, arguments, batch, length = self.begin("score", "goes")
        count = arguments.size(self.node.outputs[0].shape[1])
        with w.block(share(times(batch, length))):
            start = whole(w, f"item // {length} * {length}")
            t = whole(w, f"item % {length}")
            goes = w.register("T.int64(0)", dtype="int64", lanes=1)
            with w.block(f"if {t} >= {self.odd} and {t} % 2 == 1:"):
                better = w.register("T.int64(0)", dtype="int64", lanes=1)
                with w.block(f"for j in T.serial(T.max({length} - {self.odd} + 1, T.int64(0)) // 2):"):
                    other = f"{self.odd} + j * 2"
                    x, y = f"score[{start} + {other}]", f"score[{start} + {t}]"
                    first = f"{x} > {y} or ({x} == {y} and {other} < {t})"
                    w(f"{better} = {better} + T.Select({first}, T.int64(1), T.int64(0))")
                w(f"{goes} = T.Select({better} < {count}, T.int64(1), T.int64(0))")
            w(f"goes[item] = {goes}")
        return arguments.call("match_ranks", w, "which tokens go")

    def lists(self) -> Call:
        """What goes, into what, and where every token is found afterwards."""
        w, arguments, batch, length = self.begin("into_of", "goes")
        for name, value in zip(("gone", "into", "slots"), self.node.outputs, strict=True):
            arguments.pointer(name, "int64", Data(value))
        count = arguments.size(self.node.outputs[0].shape[1])
        with w.block(share(batch)):
            start = whole(w, f"item * {length}")
            left, out = (w.register("T.int64(0)", dtype="int64", lanes=1) for _ in range(2))
            with w.block(f"for t in T.serial({length}):"):
                w(f"slots[{start} + t] = {left}")
                with w.block(f"if goes[{start} + t] == 0:"):
                    w(f"{left} = {left} + 1")
                with w.block(f"if goes[{start} + t] != 0 and {out} < {count}:"):  # more do where scores are nan
                    w(f"gone[item * {count} + {out}] = t")
                    w(f"into[item * {count} + {out}] = into_of[{start} + t]")
                    w(f"{out} = {out} + 1")
            with w.block(f"for n in T.serial({count}):"):
                w(f"slots[{start} + gone[item * {count} + n]] = slots[{start} + into[item * {count} + n]]")
        return arguments.call("match_lists", w, "what is merged into what")
