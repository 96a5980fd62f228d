"""Rows times one tile of float weights of an expert, in registers, and what follows at each element."""

from __future__ import annotations

from collections.abc import Sequence

from irx.backends.tvm import vector_math
from irx.backends.tvm.lanes import Lanes, load
from irx.backends.tvm.layouts.reading import half
from irx.backends.tvm.layouts.tiles import Tiles
from irx.backends.tvm.templates.gemm_product import kept
from irx.backends.tvm.templates.moe_shape import Experts
from irx.backends.tvm.writer import LANES, Writer, at, constant, splat
from irx.target import Device

UNROLL = 4
CHAINS = 8
"""Sums that must be under way at once, or each multiplication waits for the one before it."""


def emit_sums(
    w: Writer, tiles: Tiles, device: Device, weights: Sequence[tuple[str, str]], x: tuple[str, str], rows: Sequence[str]
) -> list[list[str]]:
    """Sums of every row with 16 columns of every weight, [row][weight * vectors + vector].

    `weights` are buffer and number of a tile, `x` is buffer and dtype, `rows` are the first elements of rows of x.
    """
    entries, in_entry = tiles.parts["data"].shape[1], 2 if tiles.format == "bf16" else 1
    vectors = tiles.tile // LANES
    starts = [(buffer, kept(w, f"{tile} * {entries * tiles.tile}")) for buffer, tile in weights]
    loader = _Loader(w, tiles, device, [(b, s, v) for b, s in starts for v in range(vectors)], x, rows)
    together = len(rows) * len(loader.vectors)
    sums = [[[loader.zero() for _ in range(max(1, CHAINS // together))] for _ in loader.vectors] for _ in rows]
    whole = tiles.columns // in_entry
    with w.block(f"for kk in T.serial(T.int64({whole // UNROLL})):"):
        for j in range(UNROLL):
            loader.step(sums, f"(kk * {UNROLL} + {j})", j)
    for entry in range(whole - whole % UNROLL, -(-tiles.columns // in_entry)):
        loader.step(sums, str(entry), 0, is_half=entry == whole)
    return [[w.register(" + ".join(chains)) for chains in row] for row in sums]


class _Loader:
    """Multiplies one entry of the tiles after the other."""

    def __init__(
        self, w: Writer, tiles: Tiles, device: Device, vectors: list[tuple[str, str, int]], x: tuple[str, str],
        rows: Sequence[str],
    ) -> None:  # fmt: skip
        self.w, self.tiles, self.device, self.vectors, self.x, self.rows = w, tiles, device, vectors, x, rows

    def zero(self) -> str:
        return self.w.register(constant(0.0))

    def step(self, sums: list[list[list[str]]], entry: str, chain: int, is_half: bool = False) -> None:
        """One entry; of the last pair only the first column may be there."""
        columns = [self._widened(self.w.register(self._raw(v, entry), dtype=self._dtype)) for v in self.vectors]
        for i in range(1 if is_half else len(columns[0])):
            place = entry if len(columns[0]) == 1 else f"{entry} * 2 + {i}"
            for row, start in enumerate(self.rows):
                x = self.w.register(splat(load(self.w, self.x[0], f"{start} + {place}", self.x[1], 1)))
                for total, weights in zip(sums[row], columns, strict=True):
                    own = total[chain % len(total)]
                    self.w(f"{own} = {own} + {weights[i]} * {x}")

    @property
    def _dtype(self) -> str:
        return self.tiles.parts["data"].dtype if self.tiles.format != "f16" else "float32"

    def _raw(self, vector: tuple[str, str, int], entry: str) -> str:
        buffer, start, number = vector
        raw = at(buffer, f"{start} + {entry} * {self.tiles.tile} + {number * LANES}")
        return half(raw, self.device) if self.tiles.format == "f16" else raw

    def _widened(self, raw: str) -> list[str]:
        """The float32 weights of the one or two columns of an entry."""
        if self.tiles.format != "bf16":
            return [raw]
        low = f'T.reinterpret("float32x16", T.shift_left({raw}, {splat("16")}))'
        high = f'T.reinterpret("float32x16", T.bitwise_and({raw}, {splat("-65536")}))'
        return [self.w.register(low), self.w.register(high)]


def emit_bias(w: Writer, buffer: str, dtype: str, start: str, column: str, columns: int, step: int = 1) -> str:
    """16 elements of a bias from `start + column * step`, `step` apart; beyond the last of `columns` the last again."""
    if step == 1 and columns % LANES == 0:
        return load(w, buffer, f"{start} + {column}", dtype)
    name = w.local(LANES)
    with w.block(f"for c in T.serial({LANES}):"):
        place = f"{start} + T.min({column} + c, T.int64({columns - 1})) * {step}"
        w(f"{name}[c] = {load(w, buffer, place, dtype, 1)}")
    return at(name, "0")


def emit_gated(w: Writer, experts: Experts, gate: str, up: str) -> str:
    """The gated activation of 16 columns, as the op defines it."""
    v = Lanes(w)
    if experts.limit is not None:
        gate = v.let(v.at_most(gate, v.f(experts.limit)))
        up = v.let(v.at_least(v.let(v.at_most(up, v.f(experts.limit))), v.f(-experts.limit)))
    if experts.activation == "swigluoai":
        share = vector_math.sigmoid(w, v.let(f"{v.f(experts.alpha)} * {gate}"))
        return v.let(f"{gate} * {share} * ({up} + {v.f(1)})")
    functions = {"silu": vector_math.silu, "gelu": vector_math.gelu, "gelu_tanh": vector_math.gelu_tanh}
    return v.let(f"{functions[experts.activation](w, gate)} * {up}")
