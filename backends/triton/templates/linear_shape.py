"""What a kernel around a linear is made for: the region, how its weights lie in memory, and how x meets them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from irx.backends.regions.linear_region import LinearRegion, Norm
from irx.backends.regions.lowered import Refusal
from irx.backends.triton.templates.linear_layout import ALIGNMENT, Chunks
from irx.ir.types import numpy_dtype
from irx.target import Device

LARGEST_INDEX = 1 << 31


@dataclass(frozen=True)
class Problem:
    """A region on a device, before anything is chosen."""

    region: LinearRegion
    layouts: tuple[Chunks, ...]
    device: Device
    prepared: bool = False
    """True where an earlier kernel has normalized and rounded x, and left it in the dtype `operand`."""

    @property
    def n(self) -> int:
        """Output columns."""
        return self.region.n

    @property
    def k(self) -> int:
        """Columns of x."""
        return self.region.k

    @property
    def norm(self) -> Norm | None:
        """The norm that is left to do."""
        return None if self.prepared else self.region.norm

    @property
    def x_dtype(self) -> str:
        """The dtype of the x that kernels read."""
        return self.operand if self.prepared else self.region.x.dtype

    @property
    def layout(self) -> Chunks:
        """The layout of the first weight; that of a second one is equal."""
        return self.layouts[0]

    @property
    def is_packed(self) -> bool:
        """True for weights of codes and scales."""
        return self.layout.coding is not None

    @property
    def chunk(self) -> int:
        """Elements of a row of weights that a thread reads with one instruction."""
        if self.is_packed:
            return self.layout.chunk
        return ALIGNMENT // numpy_dtype(self.layout.format).itemsize

    @property
    def chunks(self) -> int:
        """Chunks of a row, the last one perhaps not full."""
        return -(-self.k // self.chunk)

    @property
    def dtype(self) -> str:
        """The dtype of the linear: what x is after its norm and its casts."""
        return self.region.products[0].result.dtype

    @property
    def operand(self) -> str:
        """The dtype in which x and weights are multiplied: products of it are exact in float32."""
        exact = self.region.activations == "bf16" and self.layout.format == "bf16"
        return "bf16" if self.dtype == "f32" and exact else self.dtype

    @property
    def rounds_x(self) -> bool:
        """True where x is rounded to bfloat16 before a product in float32."""
        rounded = self.dtype == "f32" and self.region.activations == "bf16"
        return rounded and not self.prepared and self.region.x.dtype != "bf16"

    @property
    def title(self) -> str:
        """For notes of kernels."""
        r = self.region
        norm = f"{r.norm.op}, " if r.norm else ""
        after = "".join(f", {node.op.name}" for node in r.epilogue)
        pair = " twice" if len(self.layouts) > 1 else ""
        return f"{norm}linear {r.n}x{r.k} of {self.layout.format} weights{pair}{after}; x is {r.x.dtype}"

    @property
    def bucket(self) -> str:
        """What schedules are kept by, but for rows."""
        norm = f" {self.region.norm.op}" if self.region.norm else ""
        pair = "2x " if len(self.layouts) > 1 else ""
        return f"{self.layout.format}/{self.dtype} {pair}{self.n}x{self.k}{norm}"


def problem_of(region: LinearRegion, device: Device) -> Problem:
    """The region with the layouts of its weights. Raises Refusal for what no kernel here does."""
    if region.activations == "a8":
        raise Refusal("activations of 8 bits")
    if len({(product.weight.format, product.weight.turned) for product in region.products}) > 1:
        raise Refusal("two weights of different formats")
    weights = (product.weight for product in region.products)
    return Problem(region, tuple(Chunks(w.format, region.n, region.k, w.turned) for w in weights), device)


def wide(*sizes: int) -> str:
    """A cast for indices of an array of so many elements, empty where 32 bits do."""
    return ".to(tl.int64)" if prod(sizes) >= LARGEST_INDEX else ""


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << max(0, number - 1).bit_length()
