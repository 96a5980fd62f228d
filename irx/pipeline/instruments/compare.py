"""Compare: the whole `forward` before and after the pipeline, evaluated once on the oracle with a few rows.

Passes check what they rewrite site by site; this finds what such checks cannot see. Where the two differ although no
pass was allowed to change the function, the pass that made the difference is found by bisection and taken back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from irx.analysis.inputs import random_inputs
from irx.analysis.reference import Call, evaluate
from irx.errors import IRXError
from irx.ir.program import Program
from irx.ledger import Ledger
from irx.pipeline.base import Context, Effect, Pass
from irx.pipeline.instruments.base import Instrument, Kept, Verdict
from irx.rewrite.check import difference, small_sizes

GRAPH = "forward"
LARGEST_ERROR = 1e-5
"""max|y - y0| / max|y0| on the oracle: far more than reassociation costs, far less than a mistake."""


@dataclass
class Compare(Instrument):
    """Compares on `inputs`, random ones unless given, with small `sizes`. `call` runs `torch.call` nodes."""

    inputs: Mapping[str, Any] | None = None
    sizes: Mapping[str, int] | None = None
    call: Call | None = None
    error: float | None = field(default=None, init=False)
    note: str = field(default="", init=False)
    captured: Sequence[Any] | None = field(default=None, init=False)

    def begin(self, program: Program, ctx: Context) -> None:
        """Forget an earlier pipeline."""
        self.error, self.note, self.captured = None, "", None

    def judge(self, captured: Program, kept: Sequence[Kept], ctx: Context) -> Verdict | None:
        """The first pass behind which `forward` differs, where none of them was allowed to."""
        if GRAPH not in captured.graphs or not kept:
            return None
        try:
            self.error = self._error(captured, kept[-1].program)
        except IRXError as error:
            self.note = f"the whole program was not compared: {error}"
            return None
        if self.error <= LARGEST_ERROR or any(step.one.effect is Effect.LOSSY and step.sites for step in kept):
            return None
        first = self._first_wrong(captured, kept)
        return Verdict(
            first.step, f"the whole program differs behind it: error {self._error(captured, first.program):.2g}"
        )

    def end(self, passes: Sequence[Pass], ledger: Ledger) -> None:
        """Tell the error of the whole program."""
        ledger.summary.error = self.error
        ledger.notes += [self.note] if self.note else []

    def _first_wrong(self, captured: Program, kept: Sequence[Kept]) -> Kept:
        right, wrong = -1, len(kept) - 1
        while wrong - right > 1:
            middle = (right + wrong) // 2
            if self._error(captured, kept[middle].program) > LARGEST_ERROR:
                wrong = middle
            else:
                right = middle
        return kept[wrong]

    def _error(self, captured: Program, program: Program) -> float:
        if GRAPH not in program.graphs:
            return math.inf
        if self.captured is None:
            self.captured = self._outputs(captured, captured)
        outputs = self._outputs(program, captured)
        if len(outputs) != len(self.captured):
            return math.inf
        return max((difference(new, old) for new, old in zip(outputs, self.captured, strict=True)), default=0.0)

    def _outputs(self, program: Program, captured: Program) -> list[Any]:
        sizes = dict(self.sizes) if self.sizes is not None else small_sizes(captured.sizes)
        inputs = self.inputs if self.inputs is not None else random_inputs(captured.graphs[GRAPH], sizes)
        graph = program.graphs[GRAPH]
        return evaluate(graph, inputs, sizes, program.weights, self.call, round_casts=False)
