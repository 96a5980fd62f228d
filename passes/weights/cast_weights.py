"""cast-weights: the matrices of linears, embeddings and experts are stored in a half-precision float.

Before:

    weight $w : f32[1536, 576]
    %y = irx.linear(%x, $w) : f32[B, S, 1536]

After, with dtype=bf16:

    weight $w : f32[1536, 576]
    weight $w.bf16 : bf16[1536, 576] = irx.cast($w) {dtype="bf16"}
    %c = irx.cast($w.bf16) {dtype="f32"} : f32[1536, 576]
    %y = irx.linear(%x, %c) : f32[B, S, 1536]

Activations and sums stay as they are; a kernel reads half the bytes and widens them in registers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from irx.analysis.precision import holds
from irx.ir.opdef import Array
from irx.ir.program import Program
from irx.ir.types import numpy_dtype
from irx.passes.weights.error import ProductError
from irx.passes.weights.uses import Matrix, matrices, prepared
from irx.pipeline.base import Context, Effect, NearMiss, Pass, Report, Site, Stage


@dataclass(frozen=True)
class CastWeights(Pass):
    """Store the matrices of linears, embeddings and experts as bf16 or f16; what is computed with them stays."""

    dtype: Literal["bf16", "f16"] = "bf16"

    name = "cast-weights"
    stage = Stage.WEIGHTS
    effect = Effect.LOSSY
    measure = "mean KL of next-token distributions under teacher forcing; for encoders the cosine of embeddings"

    def run(self, program: Program, ctx: Context) -> Report:
        report = Report(near_misses=prepared(program))
        measured = ProductError(program.weights)
        for matrix in matrices(program):
            reason = self._kept(matrix)
            if reason is not None:
                report.near_misses.append(NearMiss(matrix.graph, matrix.loc, reason))
            elif ctx.fuel.take():
                report.sites += self._cast(program, matrix, measured)
        return report

    def _kept(self, matrix: Matrix) -> str | None:
        """Why a weight stays as it is."""
        if holds(self.dtype, matrix.weight.dtype):
            return f"already stored as {matrix.weight.dtype}"
        if matrix.weight.dtype != "f32":
            return f"stored as {matrix.weight.dtype}, and only f32 is cast"
        return f"{matrix.others[0]} reads the weight as well" if matrix.others else None

    def _cast(self, program: Program, matrix: Matrix, measured: ProductError) -> Iterator[Site]:
        weight = matrix.weight
        error = measured.of_weight(weight, self._rounded, self.dtype)
        stored = program.weights.derive(f"{weight.name}.{self.dtype}", "cast", [weight], dtype=self.dtype)
        matrix.redirect(self.name, lambda b: b("cast", stored, dtype=weight.dtype))
        for use in matrix.uses:
            yield Site(use.graph.name, use.node.loc, f"stored as {self.dtype}", error)

    def _rounded(self, rows: Array) -> Array:
        return np.asarray(rows.astype(numpy_dtype(self.dtype)).astype(np.float32))
