"""Forms of attention kernels: how keys and values lie, which instructions multiply them, how many rows go together.

Keys are blocks of 16 tokens, so that a vector holds one channel of 16 tokens and scores need no horizontal sums. With
`fma` everything is float32 in registers; `dpbf16` and `vnni` multiply pairs of bf16 and quads of bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from irx.backends.tvm.templates.attention_storage import Storage, Tailed
from irx.backends.tvm.templates.instructions import HIGHEST, PAIRS, PREFETCH, SUM
from irx.target import Device

KEYS = 64  # keys of a tile
BLOCK = 16  # keys beside each other
LOG2_E = math.log2(math.e)
LOWEST = -1e30  # the maximum of a row that has seen nothing

TO_PAIRS = """
declare <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float>)
define <8 x i32> @irx_to_pairs(<16 x float> %x) alwaysinline {
  %n = call <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float> %x)
  %r = bitcast <16 x bfloat> %n to <8 x i32>
  ret <8 x i32> %r
}
"""


@dataclass(frozen=True)
class Form:
    """What is static in an attention kernel.

    `store` says how keys and values are stored, `dot` is one of fma, dpbf16, vnni. `tile` is rows by blocks of keys,
    and `spread` rows by vectors of values, that are summed in registers at once.
    """

    store: Storage
    heads: int
    groups: int
    k_dim: int
    v_dim: int
    scale: float
    dot: str
    rows: int
    blocks: int
    vectors: int
    window: int | None = None
    first: int = 0
    """Keys that are seen besides those of the window."""
    softcap: float | None = None
    causal: bool = True
    table: int = 0
    """Distances in a table of biases, 0 without one."""
    sinks: bool = False
    biased: bool = False
    prefix: bool = False
    """A prefix may be shared by all rows. Queries then lie by KV head first, by row of the batch second."""
    packs: bool = False
    """Codes are multiplied as pairs of bf16: queries and weights that steps have been folded into are rounded to it."""
    fetches: bool = False
    """A tile asks for the keys and values of the next one: where every key is met once, memory sets the pace."""

    @cached_property
    def shared(self) -> int:
        """Query heads that share a KV head."""
        return self.heads // self.groups

    @cached_property
    def steps(self) -> int:
        """Rows of a block of keys: words of one or more channels."""
        return -(-self.k_dim // self.store.channels)

    @cached_property
    def channels(self) -> int:
        """Channels of a key, padded."""
        return self.steps * self.store.channels

    @cached_property
    def quads(self) -> int:
        """Quads of channels of a key."""
        return self.channels // 4

    @cached_property
    def q_width(self) -> int:
        """Elements of a row of prepared queries, for zeros with their sum behind them.

        For vnni two planes of quads, what offsets add (or the bits of the sum), and the bits of a scale.
        """
        return {"fma": self.channels + self.store.zeros, "dpbf16": self.steps, "vnni": 2 * self.quads + 2}[self.dot]

    @cached_property
    def q_sum(self) -> int:
        """Where the sum is in a row of prepared queries."""
        return self.channels if self.dot == "fma" else 2 * self.quads

    @cached_property
    def v_width(self) -> int:
        """Channels of a value, padded."""
        return value_width(self.v_dim, self.store)

    @cached_property
    def v_elements(self) -> int:
        """Elements of a value."""
        return self.v_width // self.store.halves

    @cached_property
    def score_scale(self) -> float:
        """What turns a product of a query and a key into the exponent of 2 (or, with a cap, into what is capped)."""
        return self.scale * (LOG2_E if self.softcap is None else 1)

    @cached_property
    def spread(self) -> list[tuple[int, int]]:
        """(first, count) of the vectors of a value that are summed at once."""
        together = self.store.halves
        vectors = self.v_elements // 16
        parts = -(-vectors // max(1, self.vectors // together))
        edges = [vectors * i // parts * together for i in range(parts + 1)]
        return [(a, b - a) for a, b in pairwise(edges)]

    @property
    def llvm(self) -> str:
        """LLVM functions that the kernel needs."""
        pairs = self.dot == "dpbf16" or self.packs
        needed = (PAIRS + TO_PAIRS if pairs else "", PREFETCH if self.fetches else "")
        return HIGHEST + SUM + "".join(needed)


def value_width(v_dim: int, store: Storage) -> int:
    """Channels of a value, padded to whole elements."""
    return -(-v_dim // (16 * store.halves)) * 16 * store.halves


def instructions(store: Storage, device: Device) -> str:
    """The fastest `dot` that the device has for keys in a storage."""
    if store.name == "bf16" and device.features >= {"avx512_bf16", "avx512f"}:
        return "dpbf16"
    if "scale" in store.parameters and device.features >= {"avx512_vnni", "avx512f"}:
        return "vnni"
    return "fma"


def packs(store: Storage, device: Device) -> bool:
    """Whether codes are multiplied as pairs of bf16, which a program in bf16 loses nothing by."""
    needed = {"avx512_bf16", "avx512f", "avx512bw"}
    return isinstance(store, Tailed) and store.dtype == "bf16" and device.features >= needed


def registers(device: Device, rows: int, v_dim: int) -> tuple[int, int, int]:
    """(rows, blocks, vectors) for about `rows` rows: as many sums as registers hold."""
    most, sums = (6, 24) if "avx512f" in device.features else (4, 4)
    chunks = -(-rows // most)
    height = -(-rows // chunks)
    vectors = -(-v_dim // 16)
    return height, _power_of_two(min(KEYS // BLOCK, max(1, sums // height))), min(vectors, max(1, sums // height))


def _power_of_two(number: int) -> int:
    return 1 << (number.bit_length() - 1)
