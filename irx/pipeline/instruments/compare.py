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
from irx.errors import InputMismatch, IRXError, NoReference
from irx.ir.program import Program
from irx.ledger import Ledger
from irx.pipeline.base import Context, Effect, Pass
from irx.pipeline.instruments.base import Instrument, Kept, Verdict
from irx.rewrite.check import difference, small_sizes

GRAPH = "forward"
LARGEST_ERROR = 1e-5
"""max|y - y0| / max|y0| on the oracle: far more than reassociation costs, far less than a mistake."""


_FAILURES = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)  # of numpy and torch: sizes do not fit
_FEWEST = 2  # rows and tokens: enough for a mask, a position and a batch to matter


@dataclass
class Compare(Instrument):
    """Compares on `inputs` and `sizes`: random ones, and the smallest that fit. `call` runs `torch.call` nodes."""

    inputs: Mapping[str, Any] | None = None
    sizes: Mapping[str, int] | None = None
    call: Call | None = None
    error: float | None = field(default=None, init=False)
    note: str = field(default="", init=False)
    captured: _Run | None = field(default=None, init=False)
    rounds: bool = field(default=False, init=False)  # casts round: what a lossy pass rounds is part of the error

    def begin(self, program: Program, ctx: Context) -> None:
        """Forget an earlier pipeline."""
        self.error, self.note = None, ""

    def judge(self, captured: Program, kept: Sequence[Kept], ctx: Context) -> Verdict | None:
        """The first pass behind which `forward` differs, where none of them was allowed to."""
        if GRAPH not in captured.graphs or not kept:
            return None
        try:
            lossy = any(step.one.effect is Effect.LOSSY and step.sites for step in kept)
            self.captured, self.rounds = None if lossy != self.rounds else self.captured, lossy
            self.error = self._error(captured, kept[-1].program)
            if self.error <= LARGEST_ERROR or lossy:
                return None
            first = self._first_wrong(captured, kept)
            error = self._error(captured, first.program)
        except IRXError as failure:
            self.note = f"the whole program was not compared: {failure}"
            return None
        return Verdict(first.step, f"the whole program differs behind it: error {error:.2g}")

    def end(self, passes: Sequence[Pass], ledger: Ledger) -> None:
        """Tell the error of the whole program, and let go of what was captured."""
        ledger.summary.error = self.error
        ledger.notes += [self.note] if self.note else []
        self.captured = None

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
        """max|y - y0| / max|y0| of the worst output; infinite for a program that cannot be evaluated.

        Raises IRXError where the captured program cannot be.
        """
        if self.captured is None or self.captured.program is not captured:
            self.captured = self._run(captured)
        old = self.captured
        try:
            outputs = self._outputs(program, old.inputs, old.sizes)
        except NoReference:
            raise
        except (IRXError, *_FAILURES):
            return math.inf
        if len(outputs) != len(old.outputs):
            return math.inf
        return max((difference(new, y) for new, y in zip(outputs, old.outputs, strict=True)), default=0.0)

    def _run(self, program: Program) -> _Run:
        """The captured program, evaluated with the fewest rows that it takes."""
        failure: Exception | None = None
        for sizes in self._choices(program):
            try:
                inputs = self.inputs if self.inputs is not None else random_inputs(program.graphs[GRAPH], sizes)
                return _Run(program, inputs, sizes, self._outputs(program, inputs, sizes))
            except NoReference:
                raise
            except (IRXError, *_FAILURES) as error:
                failure = error
        raise InputMismatch(f"@{GRAPH} cannot be evaluated: {type(failure).__name__}: {failure}")

    def _choices(self, program: Program) -> list[Mapping[str, int]]:
        if self.sizes is not None:
            return [self.sizes]
        fewest = {name: max(range.low, _FEWEST + index) for index, (name, range) in enumerate(program.sizes.items())}
        fits = all(fewest[name] in range for name, range in program.sizes.items()) and not program.relations
        return [*([fewest] if fits else []), small_sizes(program.sizes)]

    def _outputs(self, program: Program, inputs: Mapping[str, Any], sizes: Mapping[str, int]) -> list[Any]:
        graph = program.graphs[GRAPH]
        return evaluate(graph, inputs, sizes, program.weights, self.call, round_casts=self.rounds)


@dataclass(frozen=True)
class _Run:
    """What the captured program gives for some inputs."""

    program: Program
    inputs: Mapping[str, Any]
    sizes: Mapping[str, int]
    outputs: Sequence[Any]
