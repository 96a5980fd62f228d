"""What the kernels of a convolution are made for, read off the op; one spatial axis counts as two, the first of 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeVar

from irx.backends.regions.linear_region import FLOATS
from irx.backends.regions.lowered import Refusal
from irx.backends.tvm.kernel import Size
from irx.ir.dims import Dim
from irx.ir.graph import Node, Value

T = TypeVar("T")
SIZES = tuple(Size(name) for name in ("batch", "height", "width", "out_height", "out_width"))
"""Parameters of all kernels of a convolution."""


@dataclass(frozen=True)
class Convolution:
    """One `conv1d` or `conv2d`; pairs are (height, width). `channels` are those that a filter meets."""

    x: Value
    weight: Value
    bias: Value | None
    output: Value
    space: tuple[Dim, Dim]
    out_space: tuple[Dim, Dim]
    filters: int
    channels: int
    taps: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def dtype(self) -> str:
        """Of x, weight, bias and result."""
        return self.x.dtype

    @property
    def columns(self) -> int:
        """Elements of a filter."""
        return self.channels * prod(self.taps)

    @property
    def rows(self) -> Dim:
        """Positions of all filters in the batch."""
        return self.x.shape[0] * self.out_space[0] * self.out_space[1]

    @property
    def is_padded(self) -> bool:
        """True where a filter may reach beyond the edge."""
        return any(self.padding)

    @property
    def sizes(self) -> dict[str, Dim]:
        """What the sizes are bound to."""
        values = (self.x.shape[0], *self.space, *self.out_space)
        return {size.name: value for size, value in zip(SIZES, values, strict=True)}

    @property
    def title(self) -> str:
        """For notes of kernels."""
        taps = "x".join(map(str, self.taps))
        return f"{self.filters} filters of {self.channels} channels, {taps}, stride {self.stride[0]}x{self.stride[1]}"


def convolution(node: Node) -> Convolution:
    """The shape of the op. Raises Refusal for sizes that are no numbers."""
    x, weight, bias = (node.operand(name) for name in ("x", "weight", "bias"))
    assert x is not None and weight is not None
    filters, channels, *taps = (size if isinstance(size, int) else 0 for size in weight.shape)
    if not (filters and channels and all(taps)):
        raise Refusal(f"filters of the size {weight.type} that is not of numbers")
    if x.dtype not in FLOATS:
        raise Refusal(f"a convolution of dtype {x.dtype}")
    pairs = (_pair(node, name, one) for name, one in (("stride", 1), ("padding", 0), ("dilation", 1)))
    stride, padding, dilation = pairs
    groups = node.attr("groups")
    assert isinstance(groups, int)
    return Convolution(
        x, weight, bias, node.output, _two(x.shape[2:], 1), _two(node.output.shape[2:], 1), filters, channels,
        _two(taps, 1), stride, padding, dilation, groups,
    )  # fmt: skip


def _pair(node: Node, name: str, one: int) -> tuple[int, int]:
    """An attribute for both axes."""
    value = node.attr(name)
    given = value if isinstance(value, tuple) else (value,)
    return _two([size for size in given if isinstance(size, int)], one)


def _two(values: Sequence[T], first: T) -> tuple[T, T]:
    """The last two of values that may be one."""
    return (first, values[0]) if len(values) == 1 else (values[0], values[1])


def share(total: str) -> str:
    """The loop over a thread's share of items."""
    return f"for item in T.serial(({total}) * tid // nt, ({total}) * (tid + 1) // nt):"
