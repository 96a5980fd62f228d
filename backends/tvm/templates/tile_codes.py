"""A tile of codes with a tail as plain keys and values: 64 tokens, in buffers of a thread's own.

Steps and lowest values are float16: they become float32 once for all that shares them, in a buffer `grid`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from irx.backends.regions.lowered import Temporary
from irx.backends.tvm.arguments import Arguments, whole
from irx.backends.tvm.templates.attention_form import BLOCK, KEYS, Form, value_width
from irx.backends.tvm.templates.recent import Recent
from irx.backends.tvm.writer import Writer, at, bf16_bits, splat

PAIRED = """
define <16 x i32> @irx_paired(<16 x float> %low, <16 x float> %high) alwaysinline {
  %a = call <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float> %low)
  %b = call <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float> %high)
  %c = bitcast <16 x bfloat> %a to <16 x i16>
  %d = bitcast <16 x bfloat> %b to <16 x i16>
  %x = zext <16 x i16> %c to <16 x i32>
  %y = zext <16 x i16> %d to <16 x i32>
  %z = shl <16 x i32> %y, splat (i32 16)
  %r = or <16 x i32> %x, %z
  ret <16 x i32> %r
}
"""


@dataclass
class CodedTiles:
    """Fills `tile_k` and `tile_v`, which lie as a form's plain keys and values do."""

    w: Writer
    form: Form
    recent: Recent
    capacity: str
    count: int = field(init=False)
    """Groups of a value's channels."""

    def declare(self, arguments: Arguments) -> None:
        """Declare what is read, and the buffer for grids."""
        store, state = self.recent.store, self.recent.state
        arguments.pointer("k", store.word, state["k"])
        arguments.pointer("v", store.value, state["v"])
        for name in ("k_scale", "k_zero", "v_scale", "v_zero"):
            arguments.pointer(name, store.parameter, state[name])
        self.count = self.recent.v_dim // store.group
        self.half = max(self.recent.k_dim, self.count * KEYS)
        arguments.pointer("grid", "float32", Temporary("grid", 2 * self.half * 4, per_thread=True))
        self.grid = whole(self.w, f"tid * {2 * self.half}")

    def keys(self, head: str, first: str) -> None:
        """Tokens from `first` on of a head (counted over rows)."""
        w, f, store, dim = self.w, self.form, self.recent.store, self.recent.k_dim
        words, groups = dim // store.channels, f"(({self.capacity} + {store.group - 1}) // {store.group})"
        with w.block(f"for j in T.serial({KEYS // BLOCK}):"):
            group = whole(w, f"({first} + j * {BLOCK}) // {store.group}")
            place = whole(w, f"({head} * {groups} + {group}) * {dim}")
            with w.block(f"for c in T.serial({dim // BLOCK}):"):
                self._widen("k", f"{place} + c * {BLOCK}", f"c * {BLOCK}")
            start = whole(w, f"(({head} * {self.capacity} + {first}) // {BLOCK} + j) * {words * BLOCK}")
            out = whole(w, f"tid * {KEYS * f.steps} + j * {f.steps * BLOCK}")
            with w.block(f"for d in T.serial({words}):"):
                found = w.register(at("k", f"{start} + d * {BLOCK}"), dtype="int32")
                lanes = [
                    self._value(text, f"d * {store.channels} + {number}")
                    for number, text in enumerate(store.lanes(found))
                ]
                n = f.store.channels
                for number in range(0, store.channels, n):
                    target = f"{out} + (d * {store.channels // n} + {number // n}) * {BLOCK}"
                    w(f"{at('tile_k', target)} = {self._joined(lanes[number : number + n])}")

    def values(self, head: str, first: str) -> None:
        """Tokens from `first` on."""
        w, f, store = self.w, self.form, self.recent.store
        elements = value_width(self.recent.v_dim, store) // store.halves
        for g in range(self.count):
            place = whole(w, f"({head} * {self.count} + {g}) * {self.capacity} + {first}")
            with w.block(f"for j in T.serial({KEYS // BLOCK}):"):
                self._widen("v", f"{place} + j * {BLOCK}", f"{g * KEYS} + j * {BLOCK}")
        line = whole(w, f"({head} * {self.capacity} + {first}) * {elements}")
        n = f.store.tokens
        with w.block(f"for t in T.serial({KEYS // n}):"):
            for u in range(elements // BLOCK):
                tokens = [
                    self._channels(f"{line} + (t * {n} + {i}) * {elements} + {u * BLOCK}", u, f"t * {n} + {i}")
                    for i in range(n)
                ]
                for half, lanes in enumerate(zip(*tokens, strict=True)):
                    target = (
                        f"tid * {KEYS // n * f.v_elements} + t * {f.v_elements} + {(u * store.halves + half) * BLOCK}"
                    )
                    w(f"{at('tile_v', target)} = {self._joined(list(lanes))}")

    def _channels(self, place: str, u: int, token: str) -> list[str]:
        """What vector `u` of a token's codes stands for, 16 channels at a time."""
        w, store = self.w, self.recent.store
        found = w.register(at("v", place), dtype="uint8")
        inside = [i for i in range(store.halves) if (u * store.halves + i) * BLOCK < self.recent.v_dim]
        texts = store.values(found)
        return [
            self._value(texts[i], f"{(u * store.halves + i) * BLOCK // store.group * KEYS} + {token}") for i in inside
        ]

    def _widen(self, side: str, source: str, place: str) -> None:
        for n, name in enumerate(("scale", "zero")):
            target = at("grid", f"{self.grid} + {n * self.half} + {place}")
            self.w(f'{target} = T.cast({at(f"{side}_{name}", source)}, "float32x16")')

    def _value(self, codes: str, place: str) -> str:
        """Codes on the grid at a place."""
        step, low = (splat(f"grid[{self.grid} + {n * self.half} + {place}]") for n in range(2))
        return self.w.register(f"{codes} * {step} + {low}")

    def _joined(self, lanes: list[str]) -> str:
        """One vector as it is, or two as pairs of bf16."""
        if len(lanes) == 1:
            return lanes[0]
        if self.form.dot == "dpbf16":
            return f'T.call_pure_extern("int32x16", "irx_paired", {lanes[0]}, {lanes[1]})'
        low, high = (bf16_bits(self.w, x) for x in lanes)
        both = f"T.bitwise_or({low}, T.shift_left({high}, {splat('T.uint32(16)')}))"
        return f'T.reinterpret("int32x16", {both})'
