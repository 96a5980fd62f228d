"""What the kernels of all products have in common: the region, its layouts, and units of work of whole vectors."""

from __future__ import annotations

from dataclasses import dataclass

from irx.backends.regions.linear_region import LinearRegion
from irx.backends.tvm.layouts.tiles import Tiles
from irx.backends.tvm.writer import LANES
from irx.target import Device

LARGEST_GROUP = 64
"""Most elements of x that share a scale where a kernel may choose: an outlier costs its neighbours precision."""
MOST_BITS = 6
"""Of codes that are looked up as bfloat16 numbers."""


@dataclass(frozen=True)
class ProductShape:
    """One kernel of a region: `vectors` of 16 output columns are a unit of work."""

    region: LinearRegion
    layouts: tuple[Tiles, ...]
    device: Device
    vectors: int
    unroll: int

    @property
    def columns(self) -> int:
        """Output columns in a unit of work."""
        return self.vectors * LANES

    @property
    def units(self) -> int:
        """Units of work."""
        return -(-self.region.n // self.columns)


def groups_nest(group: int, layouts: tuple[Tiles, ...]) -> bool:
    """True where groups of `group` elements of x and the groups of all packed weights are nested."""
    sizes = [layout.coding.group for layout in layouts if layout.coding is not None]
    return group % LANES == 0 and group <= 256 and all(max(group, g) % min(group, g) == 0 for g in sizes)
