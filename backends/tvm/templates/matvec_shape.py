"""What a matrix-vector kernel is made for: the region, its layouts, and how x meets the weights.

Ways, by weight format and instruction set:

    fma     x as float32, weights widened to float32: any format, any processor
    pairs   bfloat16 x and weights, two columns an instruction (AVX512-BF16)
    planes  packed weights; x as one 8-bit plane (a8), or as two that hold 16 bits, with a scale for each group (VNNI)
    halves  packed weights of at most 6 bits as bfloat16 codes, which are exact; bfloat16 x (AVX512-BF16)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from irx.backends.regions.linear_region import LinearRegion
from irx.backends.tvm.layouts.tiles import TILES, Tiles, tiles_for
from irx.backends.tvm.templates.linear_shape import LARGEST_GROUP, MOST_BITS, ProductShape, groups_nest
from irx.backends.tvm.writer import LANES
from irx.target import Device

NARROWEST = 32
"""Columns of the narrowest tile that is made for balance: shorter runs of memory are read more slowly."""

LINE = 64
WASTE = 0.03


@dataclass(frozen=True)
class Shape(ProductShape):
    """One kernel: `most` rows at once, `vectors` of 16 output columns at once (a unit of work)."""

    most: int
    prefetch: int
    in_halves: bool = False
    """Whether to multiply as `halves` in place of planes, where that can be."""

    @property
    def layout(self) -> Tiles:
        """The layout of the first weight; the second differs in nothing that matters here."""
        return self.layouts[0]

    @property
    def way(self) -> str:
        """How x meets the weights."""
        if self.in_halves and can_halve(self.region, self.layouts, self.device):
            return "halves"
        return way(self.region, self.layouts, self.device)

    @property
    def planes(self) -> int:
        """Planes of x."""
        return 1 if self.region.activations == "a8" else 2

    @property
    def x_group(self) -> int:
        """Elements of x that share a scale."""
        if self.region.activations == "a8":
            return self.region.group
        return min(min(layout.coding.group for layout in self.layouts if layout.coding), LARGEST_GROUP)

    @property
    def sum_group(self) -> int:
        """Elements of x whose sum is kept, for codes that are not centred; 0 where no sums are needed."""
        groups = [layout.coding.group for layout in self.layouts if layout.coding is not None]
        if not groups:
            return 0
        return min(*groups, self.x_group) if self.way == "planes" else min(groups)

    @property
    def has_float_sums(self) -> bool:
        """True where halves need the sums of x, for the minima of the weights."""
        return any(layout.coding.has_minimum for layout in self.layouts if layout.coding is not None)

    @property
    def is_direct(self) -> bool:
        """True where the kernel reads x as it lies in memory."""
        r = self.region
        if r.norm is not None or r.activations == "a8" or any(layout.coding for layout in self.layouts):
            return False
        if self.way == "pairs":
            return r.x.dtype == "bf16" and r.k == self.layout.depth
        return r.x.dtype == "f32" and r.activations == "f32"

    @property
    def row_places(self) -> Mapping[str, int]:
        """Where the parts of a prepared row begin, in bytes from the row's start; `end` is the row's size."""
        k, sums = self.region.k, self.region.k // self.sum_group if self.sum_group else 0
        if self.way == "pairs":
            sizes = {"x": 2 * self.layout.depth}
        elif self.way == "halves":
            sizes = {"x": 2 * k, "sums": 4 * sums * self.has_float_sums}
        elif self.way == "fma":
            sizes = {"x": 4 * k, "sums": 4 * sums}
        else:
            sizes = {"x": self.planes * k, "scales": 4 * (k // self.x_group), "sums": 4 * sums}
        places, at = {}, 0
        for name, size in sizes.items():
            places[name] = at
            at += ceil(size / LINE) * LINE
        return {**places, "end": at}


def way(region: LinearRegion, layouts: tuple[Tiles, ...], device: Device) -> str:
    """`fma`, `pairs` or `planes`."""
    if all(layout.format == "bf16" for layout in layouts):
        return "pairs" if region.activations == "bf16" and "avx512_bf16" in device.features else "fma"
    if any(layout.coding is None for layout in layouts) or not {"avx512_vnni", "avx512bw"} <= device.features:
        return "fma"
    return "planes" if region.activations != "a8" or groups_nest(region.group, layouts) else "fma"


def can_halve(region: LinearRegion, layouts: tuple[Tiles, ...], device: Device) -> bool:
    """True where codes can meet x as bfloat16 numbers."""
    codings = [layout.coding for layout in layouts if layout.coding is not None]
    small = len(codings) == len(layouts) and all(coding.bits <= MOST_BITS for coding in codings)
    return small and region.activations == "bf16" and device.features.issuperset(("avx512_bf16", "avx512bw"))


def layouts_of(region: LinearRegion, device: Device) -> tuple[Tiles, ...]:
    """One layout for each weight of the region: the same whatever the kernel, so that one copy serves all."""
    tile = LANES * balanced_vectors(region.n, TILES[0], device.cores, NARROWEST // LANES)
    weights = (product.weight for product in region.products)
    return tuple(tiles_for(w.format, region.n, region.k, tile=tile, turned=w.turned) for w in weights)


def balanced_vectors(n: int, tile: int, threads: int, narrowest: int = 1, widest: int = 4) -> int:
    """The most vectors a unit can have while the threads' shares of `n` columns stay nearly equal."""
    choices = [v for v in (4, 2, 1) if v * LANES <= tile and narrowest <= v <= widest]

    def waste(vectors: int) -> float:
        units = -(-n // (vectors * LANES))
        return -(-units // threads) * threads * vectors * LANES / n - 1

    good = (v for v in choices if waste(v) <= WASTE)
    return next(good, min(choices, key=lambda v: (waste(v), -v)))
