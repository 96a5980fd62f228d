"""Attention of one new token to codes with a tail, two products at a time: codes and what meets them are pairs of bf16.

Before, every code of a word becomes a float32 of its own: a shift, a mask, a conversion, and a product for each query.
Here a mask and an exponent make the codes of two channels a word of two bf16, c + 2^n for a code c, and one instruction
multiplies both. What the powers of 2 add is taken off again in float32, from the same rounded queries and weights, so
that only these have lost digits: a code is exact.

Of keys a word has pairs of channels. Of values the bytes of four tokens are put together, whose weights are the pairs.
"""

from __future__ import annotations

from irx.backends.tvm.arguments import whole
from irx.backends.tvm.templates.attention_form import BLOCK, KEYS, Form
from irx.backends.tvm.templates.attention_kernel import AttentionKernel, Sources
from irx.backends.tvm.templates.attention_storage import Tailed
from irx.backends.tvm.templates.attention_tailed import TailedKernel
from irx.backends.tvm.templates.attention_tile import Places
from irx.backends.tvm.templates.instructions import dot_pairs, prefetch, summed
from irx.backends.tvm.writer import at, constant, splat

TOKENS = 4  # whose values are put together
SUMS = 12  # registers that are added to at once, so that no addition waits for the one before

CROSSED = """
define <8 x i32> @irx_crossed(<16 x float> %x) alwaysinline {
  %y = shufflevector <16 x float> %x, <16 x float> poison, <16 x i32> <i32 0, i32 2, i32 1, i32 3, i32 4, i32 6, i32 5, i32 7, i32 8, i32 10, i32 9, i32 11, i32 12, i32 14, i32 13, i32 15>
  %r = call <8 x i32> @irx_to_pairs(<16 x float> %y)
  ret <8 x i32> %r
}
"""  # noqa: E501
EIGHTS = """
declare <8 x float> @llvm.x86.avx512bf16.dpbf16ps.256(<8 x float>, <16 x bfloat>, <16 x bfloat>)
declare float @llvm.vector.reduce.fadd.v8f32(float, <8 x float>)
define float @irx_sum_eight(<8 x float> %x) alwaysinline {
  %r = call reassoc float @llvm.vector.reduce.fadd.v8f32(float -0.0, <8 x float> %x)
  ret float %r
}
"""
WEIGHED = """
define <8 x float> @NAME(<8 x float> %sum, <8 x i32> %pairs) alwaysinline {
  %x = bitcast <8 x i32> %pairs to <16 x bfloat>
  %y = bitcast <8 x i32> <WORDS> to <16 x bfloat>
  %r = call <8 x float> @llvm.x86.avx512bf16.dpbf16ps.256(<8 x float> %sum, <16 x bfloat> %x, <16 x bfloat> %y)
  ret <8 x float> %r
}
"""
QUADS = """
define <16 x i32> @irx_quads(<16 x i8> %a, <16 x i8> %b, <16 x i8> %c, <16 x i8> %d) alwaysinline {
  %ac = shufflevector <16 x i8> %a, <16 x i8> %c, <32 x i32> <EACH32>
  %bd = shufflevector <16 x i8> %b, <16 x i8> %d, <32 x i32> <EACH32>
  %x = bitcast <32 x i8> %ac to <16 x i16>
  %y = bitcast <32 x i8> %bd to <16 x i16>
  %z = shufflevector <16 x i16> %x, <16 x i16> %y, <32 x i32> <EACH32>
  %r = bitcast <32 x i16> %z to <16 x i32>
  ret <16 x i32> %r
}
""".replace("EACH32", ", ".join(f"i32 {n // 2 + n % 2 * 16}" for n in range(32)))


def kernel_of(f: Form, x: Sources) -> AttentionKernel:
    """The kernel for a form's storage."""
    if not isinstance(f.store, Tailed):
        return AttentionKernel(f, x)
    return PairedKernel(f, x) if f.packs else TailedKernel(f, x)


def functions(f: Form) -> str:
    """The LLVM functions of `kernel_of`."""
    if not f.packs or not isinstance(f.store, Tailed):
        return f.llvm
    # A word has the pairs of each place in its bytes, of even bytes and of odd ones.
    above = [f.store.above[n // 2 % f.store.halves] for n in range(BLOCK // 2)]
    sums = _weighed("irx_less_above", [-n for n in above]) + _weighed("irx_added", [1] * len(above))
    return f.llvm + CROSSED + QUADS + EIGHTS + sums


def _weighed(name: str, factors: list[int]) -> str:
    """A function: eight lanes plus the pairs, each times a power of 2."""
    bits = [(127 + abs(n).bit_length() - 1 << 7) + (n < 0) * 0x8000 for n in factors]
    return WEIGHED.replace("NAME", name).replace("WORDS", ", ".join(f"i32 {n << 16 | n}" for n in bits))


class PairedKernel(TailedKernel):
    """Reads codes as pairs; tails are read as `TailedKernel` does."""

    def folded_width(self) -> tuple[int, str]:
        """Elements of `folded` and their dtype: words of two queries, or weights."""
        width, _ = super().folded_width()
        return width // 2, "int32"

    def _coded_scores(self, a: Places, head: str, row: str, part: int, blocks: int) -> list[str]:
        f, w, store = self.f, self.w, self.store
        sums = self._begun(blocks, self._fold_queries(row, self._group(a, head, part)))
        more = [self._begun(blocks, ["T.float32(0)"] * f.rows) for _ in range(self._copies(f.rows * blocks) - 1)]
        start = whole(w, f"{a.k} + ({a.first} // {BLOCK} + {part}) * {f.steps * BLOCK}")
        with w.block(f"for d in T.serial({f.steps}):"), w.block(f"for j in T.unroll({blocks}):"):
            index = f"{start} + (j * {f.steps} + d) * {BLOCK}"
            if f.fetches:
                w(prefetch("k", f"{index} + {a.ahead} * {f.steps}"))
            for number, keys in enumerate(self._pairs(at("k", index))):
                copy = [sums, *more][number % (1 + len(more))]
                for i, total in enumerate(copy):
                    q = f"folded[{self.folded} + {i * f.channels // 2} + d * {store.channels // 2} + {number}]"
                    value = at(total, f"j * {BLOCK}")
                    w(f"{value} = {dot_pairs(value, keys, splat(q))}")
        self._join(sums, more, blocks)
        return sums

    def _copies(self, sums: int) -> int:
        """How often every sum is kept, for so many."""
        return min(2 * self.store.halves, max(1, SUMS // sums))

    def _join(self, sums: list[str], more: list[list[str]], blocks: int) -> None:
        w = self.w
        with w.block(f"for j in T.unroll({blocks}):"):
            for i, total in enumerate(sums):
                own, added = at(total, f"j * {BLOCK}"), [at(copy[i], f"j * {BLOCK}") for copy in more]
                w(f"{own} = {' + '.join([own, *added])}")

    def _pairs(self, words: str) -> list[str]:
        """The pairs in words of codes."""
        w, kept = self.w, self.w.register(words, dtype="int32")
        shifted = {
            n: _right(kept, n) if not n else w.register(_right(kept, n), dtype="int32") for n in self.store.shifts
        }
        return [w.register(text, dtype="int32") for text in self.store.pairs(shifted)]

    def _fold_queries(self, row: str, place: str) -> list[str]:
        f, w = self.f, self.w
        added = [w.register(constant(0.0)) for _ in range(f.rows)]
        above = [w.register(constant(0.0, 8), lanes=8) for _ in range(f.rows)]
        with w.block(f"for c in T.serial({f.channels // BLOCK}):"):
            step, low = self._grid("k", f"{place} + c * {BLOCK}")
            for i in range(f.rows):
                q = w.register(at("q", f"{row} + {i * f.q_width} + c * {BLOCK}"))
                crossed = f'T.call_pure_extern("int32x8", "irx_crossed", {q} * {step})'
                self._keep_pairs(f"{i * f.channels // 2} + c * {BLOCK // 2}", crossed, above[i], "irx_less_above")
                w(f"{added[i]} = {added[i]} + {q} * {low}")
        both = zip(added, above, strict=True)
        return [w.register(f"{summed(x)} + {_sum_eight(y)}", lanes=1) for x, y in both]

    def _keep_pairs(self, place: str, value: str, total: str, weighed: str) -> None:
        """Eight pairs go to `folded`, and are added up by one of the functions above."""
        w = self.w
        pairs = w.register(value, dtype="int32", lanes=8)
        w(f"{at('folded', f'{self.folded} + {place}', 8)} = {pairs}")
        w(f'{total} = T.call_pure_extern("float32x8", "{weighed}", {total}, {pairs})')

    def _coded_values(self, a: Places, head: str, limit: str) -> None:
        f, w, store = self.f, self.w, self.store
        count = f.v_dim // store.group
        added = self._fold_weights(a, head, limit, count)
        for first, width in f.spread:
            inside = [v for v in range(width) if (first + v) * BLOCK < f.v_dim]
            sums = self._outputs(a, first, width)
            for v in inside:
                for i, total in enumerate(sums):
                    low, weights = added[i][(first + v) * BLOCK // store.group]
                    value = at(total, str(v * BLOCK))
                    above = float(store.above[v % store.halves])
                    w(f"{value} = {value} + {splat(f'({low} - {weights} * T.float32({above}))')}")
            line = whole(w, f"{a.v} + {a.first} * {f.v_elements} + {first * BLOCK // store.halves}")
            with w.block(f"for t in T.serial(({limit} + {TOKENS - 1}) // {TOKENS}):"):
                for c in range(width // store.halves):
                    place = f"{line} + t * {TOKENS * f.v_elements} + {c * BLOCK}"
                    self._add_quads(sums, place, first, c, count, a.ahead)
            self._keep(a, sums, first, width)

    def _add_quads(self, sums: list[str], place: str, first: int, c: int, groups: int, ahead: str) -> None:
        """One vector of the codes of four tokens, from token 4 `t` of the tile on."""
        f, w, store = self.f, self.w, self.store
        lines = [f"{place} + {n * f.v_elements}" for n in range(TOKENS)]
        for n in range(0, TOKENS if f.fetches and c % store.per_line == 0 else 0, max(1, 64 // f.v_elements)):
            w(prefetch("v", f"{lines[n]} + {ahead} * {f.v_elements}"))
        quads = f'T.call_pure_extern("int32x16", "irx_quads", {", ".join(at("v", line) for line in lines)})'
        for number, lanes in enumerate(self._pairs(quads)):
            vector, pair = c * store.halves + number // 2, number % 2
            if (first + vector) * BLOCK >= f.v_dim:
                continue
            group = (first + vector) * BLOCK // store.group
            for i, total in enumerate(sums):
                weight = f"folded[{self.folded} + {(i * groups + group) * KEYS // 2} + t * {TOKENS // 2} + {pair}]"
                value = at(total, str(vector * BLOCK))
                w(f"{value} = {dot_pairs(value, lanes, splat(weight))}")

    def _fold_weights(self, a: Places, head: str, limit: str, count: int) -> list[list[tuple[str, str]]]:  # type: ignore[override]
        """Weights times steps go to `folded`; gives what lowest values add to rows, and the sum of what is folded."""
        f, w = self.f, self.w
        bound = splat(f'T.cast({limit}, "int32")')
        made: list[list[tuple[str, str]]] = [[] for _ in range(f.rows)]
        for g in range(count):
            place = whole(w, f"({head} * {count} + {g}) * {self.capacity} + {a.first}")
            sums = [(w.register(constant(0.0)), w.register(constant(0.0, 8), lanes=8)) for _ in range(f.rows)]
            with w.block(f"for j in T.unroll({KEYS // BLOCK}):"):
                step, low = self._grid("v", f"{place} + j * {BLOCK}")
                keys = f'T.ramp(T.cast(j * {BLOCK}, "int32"), 1, 16) < {bound}'
                for i, (added, weights) in enumerate(sums):
                    found = at("s", f"{a.s} + chunk * {f.rows * KEYS} + {i * KEYS} + j * {BLOCK}")
                    weight = w.register(f"T.Select({keys}, {found}, {constant(0.0)})")
                    pairs = f'T.call_pure_extern("int32x8", "irx_to_pairs", {weight} * {step})'
                    place_of = f"{(i * count + g) * KEYS // 2} + j * {BLOCK // 2}"
                    self._keep_pairs(place_of, pairs, weights, "irx_added")
                    w(f"{added} = {added} + {weight} * {low}")
            for i, (added, weights) in enumerate(sums):
                made[i].append((w.register(summed(added), lanes=1), w.register(_sum_eight(weights), lanes=1)))
        return made


def _right(words: str, bits: int) -> str:
    return f"T.shift_right({words}, T.broadcast(T.int32({bits}), 16))" if bits else words


def _sum_eight(value: str) -> str:
    return f'T.call_pure_extern("float32", "irx_sum_eight", {value})'
