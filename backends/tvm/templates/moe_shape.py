"""What the kernels of a mixture of experts are made for, read off the op."""

from __future__ import annotations

from dataclasses import dataclass

from irx.backends.regions.linear_region import FLOATS
from irx.backends.regions.lowered import Refusal
from irx.backends.tvm.layouts.stacked import Stacked
from irx.backends.tvm.layouts.tiles import tiles_for
from irx.ir.dims import Dim
from irx.ir.graph import Graph, Node, Value
from irx.target import Device

TILE = 32
"""Rows of a weight that are computed at once: two vectors of each side."""


@dataclass(frozen=True)
class Experts:
    """One op `moe`: `choices` experts for each of `tokens` rows of `width`; `hidden` is F of the op."""

    x: Value
    index: Value
    weights: Value
    gate_up: Value
    down: Value
    gate_up_bias: Value | None
    down_bias: Value | None
    output: Value
    first: Stacked
    second: Stacked
    tokens: Dim
    choices: int
    activation: str
    alpha: float
    limit: float | None
    device: Device

    @property
    def width(self) -> int:
        """Columns of x and of the result."""
        return self.first.tiles.columns

    @property
    def hidden(self) -> int:
        """Columns between the products."""
        return self.second.tiles.columns

    @property
    def pairs(self) -> Dim:
        """Rows that are multiplied: one for each token and expert that it chose."""
        return self.tokens * self.choices

    @property
    def block(self) -> int:
        """Rows that meet a tile of weights at once."""
        return 6 if "avx512f" in self.device.features else 2

    @property
    def title(self) -> str:
        """For notes of kernels."""
        return f"{self.choices} of {self.first.experts} experts {self.width}x{self.hidden}, {self.first.tiles.format}"


def padded_rows(layout: Stacked) -> int:
    """Output columns with those that fill the last tile."""
    return layout.tiles.tiles * layout.tiles.tile


def experts_of(body: Graph, node: Node, device: Device) -> Experts:
    """The shape of the body's op. Raises Refusal for what its kernels do not do."""
    x, index, weights = (_input(body, node.operand(name)) for name in ("x", "index", "weights"))
    gate_up, down = (_weight(node.operand(name)) for name in ("gate_up", "down"))
    biases = [_bias(body, node.operand(name)) for name in ("gate_up_bias", "down_bias")]
    choices, (first, second) = index.shape[1], _layouts(node, gate_up, down)
    if not isinstance(choices, int):
        raise Refusal("a number of experts for each token that is known only when it runs")
    alpha, limit = node.attr("alpha"), node.attr("limit")
    assert isinstance(alpha, int | float) and (limit is None or isinstance(limit, int | float))
    return Experts(
        x, index, weights, gate_up, down, biases[0], biases[1], node.output, first, second, x.shape[0], choices,
        str(node.attr("activation")), float(alpha), None if limit is None else float(limit), device,
    )  # fmt: skip


def _layouts(node: Node, gate_up: Value, down: Value) -> tuple[Stacked, Stacked]:
    """Tiles of the first weights, gate and up in tiles of their own, and of the second ones."""
    turned = bool(node.attr("transposed"))
    experts, *rest = (size if isinstance(size, int) else 0 for size in down.shape)
    hidden, width = rest if turned else rest[::-1]
    if not (experts and hidden and width):
        raise Refusal(f"experts of the size {down.type} that is not of numbers")
    first = tiles_for(gate_up.dtype, hidden, width, tile=TILE, turned=turned)
    second = tiles_for(down.dtype, width, hidden, tile=TILE, turned=turned)
    return Stacked(first, experts, 2, bool(node.attr("interleaved"))), Stacked(second, experts)


def _input(body: Graph, value: Value | None) -> Value:
    if value not in body.inputs:
        raise Refusal("an operand of the experts is computed in the region")
    assert value is not None
    return value


def _bias(body: Graph, value: Value | None) -> Value | None:
    return None if value is None else _input(body, value)


def _weight(value: Value | None) -> Value:
    """The weight as it is stored: numbers that are only widened may be stored narrow."""
    assert value is not None
    while value.producer is not None and value.producer.op.name == "cast":
        source = value.producer.inputs[0]
        if source is None or value.dtype != "f32":
            raise Refusal(f"the weight %{value.name} is rounded in the region")
        value = source
    if value.producer is not None:
        raise Refusal(f"experts whose weights come from {value.producer.op.name}")
    if value.dtype not in FLOATS:
        raise Refusal(f"experts with weights of dtype {value.dtype}")
    return value
