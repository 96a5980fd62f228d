"""lowrank-weights: a product becomes two thin ones, W = U V with few columns of U, where that takes fewer bytes.

Before:

    %y = irx.linear(%x, $w) : f32[B, S, 1536]

After, with rank=0.25 (of 576):

    weight $w.basis : f32[1536, 160]
    weight $w.basis.turned : f32[160, 1536] = irx.permute($w.basis) {order=[1, 0]}
    weight $w.thin : f32[160, 576] = irx.matmul($w.basis.turned, $w)
    %t = irx.linear(%x, $w.thin) : f32[B, S, 160]
    %y = irx.linear(%t, $w.basis) : f32[B, S, 1536]

The truncated singular value decomposition of W diag(a), a the RMS of the inputs: the best approximation of the product
for inputs whose channels vary independently. U holds its left singular vectors; as they are orthonormal, U V with
V = U^T W is what the decomposition divided by a again gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from irx.errors import UnboundWeight
from irx.ir.dims import evaluate
from irx.ir.graph import Builder, Value, Weight
from irx.ir.opdef import Array
from irx.ir.program import Program
from irx.ir.types import TensorType, numpy_dtype
from irx.passes.weights.moments import channel_rms, product_inputs
from irx.passes.weights.uses import LINEAR, Matrix, Use, matrices, prepared
from irx.pipeline.base import Context, Effect, NearMiss, Pass, Report, Site, Stage
from irx.rewrite.cleanup import erase_unused
from irx.rewrite.report import Fuel

_MULTIPLE = 32  # a rank that is a share is rounded to whole blocks, so that both factors can be packed


@dataclass(frozen=True)
class LowrankWeights(Pass):
    """Store the matrices of linears, but not of the LM head, as products of two of the given rank.

    `rank` is a number of columns, or below 1 a share of the smaller side of each matrix.
    """

    rank: int | float = 0.25

    name = "lowrank-weights"
    stage = Stage.WEIGHTS
    effect = Effect.LOSSY
    paper = "activation-aware SVD: Yuan et al. 2023, ASVD, arXiv:2312.05821"
    measure = "mean KL of next-token distributions under teacher forcing; for encoders the cosine of embeddings"

    def __post_init__(self) -> None:
        if self.rank <= 0 or (isinstance(self.rank, float) and self.rank > 1):
            raise ValueError(f"rank is {self.rank}, but must be a share up to 1.0 or a whole number from 1")

    def run(self, program: Program, ctx: Context) -> Report:
        work = _Factoring(self, program, ctx.fuel, Report(near_misses=prepared(program)))
        found = matrices(program)
        inputs = product_inputs(found)
        fitting = [matrix for matrix in found if work.fits(matrix, inputs)]
        if fitting:
            wanted = {matrix.weight: inputs[matrix.weight] for matrix in fitting}
            work.run(fitting, channel_rms(ctx.calibrated(self.name), program, wanted))
        return work.report

    def rank_of(self, weight: Weight) -> int:
        """The rank that a matrix `[N, K]` gets."""
        smaller = min(_extents(weight))
        if isinstance(self.rank, int):
            return min(self.rank, smaller)
        return min(smaller, max(1, round(self.rank * smaller / _MULTIPLE)) * _MULTIPLE)


@dataclass
class _Factoring:
    options: LowrankWeights
    program: Program
    fuel: Fuel
    report: Report = field(default_factory=Report)

    def run(self, fitting: list[Matrix], rms: Mapping[Weight, Array]) -> None:
        for matrix in fitting:
            try:
                self.program.weights.array(matrix.weight)
            except UnboundWeight:
                self._miss(matrix, "the weight has no array")
                continue
            if self.fuel.take():
                self._factor(matrix, rms[matrix.weight])

    def fits(self, matrix: Matrix, inputs: Mapping[Weight, list[Value]]) -> bool:
        """True where two factors are smaller than the matrix and nothing else stands against them."""
        reason = self._obstacle(matrix, inputs)
        if reason is not None:
            self._miss(matrix, reason)
        return reason is None

    def _obstacle(self, matrix: Matrix, inputs: Mapping[Weight, list[Value]]) -> str | None:
        if matrix.roles != {LINEAR}:
            return f"its role is {' and '.join(sorted(matrix.roles))}, and only linears of blocks are factored"
        if matrix.others:
            return f"{matrix.others[0]} reads the weight as well"
        if matrix.weight not in inputs:
            return "it is not in the graph forward, on which inputs are judged"
        (rows, columns), rank = _extents(matrix.weight), self.options.rank_of(matrix.weight)
        if rank * (rows + columns) >= rows * columns:
            return f"rank {rank} saves no bytes: {rank} x ({rows} + {columns}) is not below {rows} x {columns}"
        return None

    def _miss(self, matrix: Matrix, reason: str) -> None:
        self.report.near_misses.append(NearMiss(matrix.graph, matrix.loc, reason))

    def _factor(self, matrix: Matrix, rms: Array) -> None:
        weights, weight = self.program.weights, matrix.weight
        rank = self.options.rank_of(weight)
        array = np.asarray(weights.array(weight), dtype=np.float64)
        found, error = leading(array, rms, rank)
        type = TensorType((array.shape[0], rank), weight.dtype)
        stored = found.astype(numpy_dtype(weight.dtype))
        basis = weights.add(f"{weight.name}.basis", type, lambda: stored)
        turned = weights.derive(f"{basis.name}.turned", "permute", [basis], order=(1, 0))
        thin = weights.derive(f"{weight.name}.thin", "matmul", [turned, weight])
        for use in matrix.uses:
            _split(use, thin, basis, self.options.name)
            self.report.sites.append(Site(use.graph.name, use.node.loc, f"rank {rank} of {min(array.shape)}", error))


def leading(array: Array, rms: Array, rank: int) -> tuple[Array, float]:
    """The `rank` leading left singular vectors `[N, rank]` of `array * rms`, and how much of it they miss.

    `array` is [N, K], `rms` [K]. The error is the Frobenius norm of what is missed relative to that of all: the RMS
    error of the product relative to the RMS of its result, for inputs whose channels vary independently.
    """
    scaled = array * rms
    if scaled.shape[0] <= scaled.shape[1]:
        values, vectors = np.linalg.eigh(scaled @ scaled.T)
        basis = vectors[:, ::-1][:, :rank]
    else:
        values, vectors = np.linalg.eigh(scaled.T @ scaled)
        basis = np.linalg.qr(scaled @ vectors[:, ::-1][:, :rank])[0]
    energies = np.maximum(values[::-1], 0.0)
    total = energies.sum()
    return basis, float(np.sqrt(energies[rank:].sum() / total)) if total > 0 else 0.0


def _split(use: Use, thin: Weight, basis: Weight, by: str) -> None:
    node = use.node
    b = Builder(use.graph, node, node.loc.touched(by))
    x, bias = node.operand("x"), node.operand("bias")
    made = b("linear", b("linear", x, thin), basis, *([] if bias is None else [bias]))
    use.graph.replace(node.output, made)
    erase_unused(use.graph, [node])


def _extents(weight: Weight) -> tuple[int, int]:
    rows, columns = (evaluate(dim, {}) for dim in weight.shape)
    return rows, columns
