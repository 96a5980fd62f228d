"""cast-activations: what goes into a linear is rounded first, so that the product needs fewer bits.

Before:

    %y = irx.linear(%x, $w) : f32[B, S, 1536]

After, with to=bf16, and with to=a8:

    %h = irx.cast(%x) {dtype="bf16"} : bf16[B, S, 576]
    %r = irx.cast(%h) {dtype="f32"} : f32[B, S, 576]
    %y = irx.linear(%r, $w) : f32[B, S, 1536]

    %r = irx.round_activations(%x) {bits=8, group=32} : f32[B, S, 576]
    %y = irx.linear(%r, $w) : f32[B, S, 1536]

Linears that read one value read one rounded value. The program says exactly what a kernel computes that multiplies
bf16 numbers, or 8-bit codes, and sums in float32 or int32; such a kernel absorbs the rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from irx.analysis.structure import is_constant
from irx.ir.graph import Builder, Graph, Node, Value, Weight
from irx.ir.opdef import Array
from irx.ir.program import Program
from irx.ir.types import numpy_dtype
from irx.ops.precision import RoundActivations
from irx.passes.weights.error import ProductError
from irx.pipeline.base import Context, Effect, NearMiss, Pass, Report, Site, Stage
from irx.rewrite.report import Fuel


@dataclass(frozen=True)
class CastActivations(Pass):
    """Round the activations that linears with constant weights read: to bf16, or to 8 bits with a scale per `group`."""

    to: Literal["bf16", "a8"] = "bf16"
    group: int = 32

    name = "cast-activations"
    stage = Stage.WEIGHTS
    effect = Effect.LOSSY
    paper = "a8: Dettmers et al. 2022, LLM.int8(), arXiv:2208.07339; Yao et al. 2022, ZeroQuant, arXiv:2206.01861"
    measure = "mean KL of next-token distributions under teacher forcing; for encoders the cosine of embeddings"

    def __post_init__(self) -> None:
        if self.group < 1:
            raise ValueError(f"group is {self.group}, but must be positive")

    def run(self, program: Program, ctx: Context) -> Report:
        report = Report()
        measured = ProductError(program.weights)
        for graph in program.graphs.values():
            report.add(self._round(graph, measured, ctx.fuel))
        return report

    def _round(self, graph: Graph, measured: ProductError, fuel: Fuel) -> Report:
        report = Report()
        rounded: dict[Value, Value] = {}
        for node, x, weight in _linears(graph):
            reason = self._kept(node, x)
            if reason is not None:
                report.near_misses.append(NearMiss(graph.name, node.loc, reason))
                continue
            if not fuel.take():
                break
            if x not in rounded:
                rounded[x] = self._rounding(Builder(graph, node, node.loc.touched(self.name)), x)
            graph.set_inputs(node, [rounded[x], *node.inputs[1:]])
            error = measured.of_activations(weight, self._on_rows, self.to) if weight is not None else None
            report.sites.append(Site(graph.name, node.loc, f"activations in {self.to}", error))
        return report

    def _kept(self, node: Node, x: Value) -> str | None:
        """Why the activations of a linear stay as they are."""
        if node.op.name == "moe":
            return "the experts' second product reads values that exist only inside the op"
        if x.producer is not None and x.producer.op.name == "round_activations":
            return "the activations are rounded already"
        if self.to == "bf16" and (x.dtype != "f32" or _came_from(x) == "bf16"):
            return f"the activations are {x.dtype if x.dtype != 'f32' else 'bf16'} already"
        columns = x.shape[-1]
        if self.to == "a8" and (not isinstance(columns, int) or columns % self.group):
            return f"rows of {columns} elements are no whole groups of {self.group}"
        return None

    def _rounding(self, b: Builder, x: Value) -> Value:
        if self.to == "a8":
            return b("round_activations", x, bits=8, group=self.group)
        return b("cast", b("cast", x, dtype="bf16"), dtype=x.dtype)

    def _on_rows(self, x: Array) -> Array:
        """The rounding of an array, as the nodes do it."""
        if self.to == "a8":
            return np.asarray(RoundActivations.reference(x, bits=8, group=self.group))
        return np.asarray(x.astype(numpy_dtype("bf16")).astype(np.float32))


def _linears(graph: Graph) -> Iterator[tuple[Node, Value, Weight | None]]:
    """Products with constant matrices: the node, what it multiplies, and the weight where that is stored."""
    for node in graph.nodes:
        if node.op.name not in ("linear", "moe"):
            continue
        x, matrix = node.inputs[0], node.inputs[1 if node.op.name == "linear" else 3]
        if x is not None and matrix is not None and is_constant(matrix) and not is_constant(x):
            yield node, x, _stored(matrix)


def _stored(matrix: Value) -> Weight | None:
    """The weight, where the matrix is one or its values in another dtype."""
    node = matrix.producer
    if node is not None and node.op.name in ("dequantize", "cast"):
        matrix = node.inputs[0] or matrix
    return matrix if isinstance(matrix, Weight) else None


def _came_from(x: Value) -> str | None:
    """The dtype that `x` was just widened from."""
    node = x.producer
    source = node.inputs[0] if node is not None and node.op.name == "cast" else None
    return source.dtype if source is not None else None
