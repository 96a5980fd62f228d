"""Runs passes one by one: each on a copy, watched by the instruments, and accepted or refused as a whole."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from irx.errors import IRXError, PassRefused
from irx.ir.program import Program
from irx.ledger import DROPPED, REFUSED, Ledger, Row
from irx.pipeline.base import Context, Effect, Pass, Report
from irx.pipeline.instruments.base import Dropped, Instrument, Kept, Verdict
from irx.pipeline.options import spell
from irx.pipeline.oracle import reading
from irx.pipeline.rows import calls, kept_rows, operations, refused_row, taken_back_row

LARGEST_ERROR = {Effect.EXACT: 1e-9, Effect.ROUNDING: 1e-5}
"""What a pass's own checks may measure on the float64 oracle: EXACT differs by the oracle's rounding alone."""


def run(
    passes: Sequence[Pass],
    instruments: Sequence[Instrument],
    program: Program,
    ctx: Context,
    *,
    strict: bool = False,
    text: str = "",
) -> tuple[Program, Ledger]:
    """The program after all passes that were accepted, and the ledger.

    Raises PassRefused with `strict`, and VerifyError where the program given is broken.
    """
    spent = ctx.fuel.spent
    attempt = _Attempt(passes, instruments, ctx, strict)
    result = attempt.run(program)
    while (verdict := _verdict(instruments, program, attempt.kept, ctx)) is not None:
        ctx.fuel.spent = spent
        refused = {**attempt.taken_back, verdict.step: verdict}
        if strict and not verdict.dropped:
            raise _refused(passes[verdict.step], verdict.reason, verdict.step)
        attempt = _Attempt(passes, instruments, ctx, strict, refused)
        result = attempt.run(program)
    ledger = Ledger(attempt.rows)
    ledger.summary.pipeline = text
    ledger.summary.operations, ledger.summary.calls = operations(result), calls(result)
    for instrument in instruments:
        instrument.end(passes, ledger)
    ledger.summary.plan = _plan(passes, ledger)
    return result, ledger


def _plan(passes: Sequence[Pass], ledger: Ledger) -> str:
    """The passes in text without the lossy ones that were not kept; what was no gain here may be one elsewhere."""
    left_out = {row.step for row in ledger.rows if row.decision in (DROPPED, REFUSED)}
    return " | ".join(
        spell(one) for step, one in enumerate(passes) if one.effect is not Effect.LOSSY or step not in left_out
    )


@dataclass
class _Attempt:
    """One run over all passes but those that were taken back after an earlier one."""

    passes: Sequence[Pass]
    instruments: Sequence[Instrument]
    ctx: Context
    strict: bool
    taken_back: dict[int, Verdict] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    captured: Program | None = None  # as it was before the first lossy pass that changed something

    def run(self, program: Program) -> Program:
        self.captured = self.ctx.captured  # of who runs a pipeline in parts
        for instrument in self.instruments:
            instrument.plan([one for step, one in enumerate(self.passes) if step not in self.taken_back])
            instrument.begin(program, self.ctx)
        for step, one in enumerate(self.passes):
            if step in self.taken_back:
                self.rows.append(taken_back_row(step, one, self.taken_back[step]))
            else:
                program = self._step(step, one, program)
        return program

    def _step(self, step: int, one: Pass, program: Program) -> Program:
        """The program after the pass, or as it was where the pass is refused."""
        copy = program.clone()
        try:
            report = self._apply(one, copy)
        except Dropped as error:
            self._drop(step, one, copy, str(error))
            return program
        except Exception as error:
            self._refuse(step, one, copy, error)
            return program
        problem = _excess(one, report)
        if problem is not None:
            self._refuse(step, one, copy, PassRefused(problem), report)
            return program
        self.rows += kept_rows(step, one, report)
        self.kept.append(Kept(step, one, copy, len(report.sites)))
        if self.captured is None and one.effect is Effect.LOSSY and report.sites:
            self.captured = program
        return copy

    def _apply(self, one: Pass, program: Program) -> Report:
        for instrument in self.instruments:
            instrument.before(one, program)
        report = one.run(program, replace(reading(self.ctx, program), captured=self.captured))
        for instrument in reversed(self.instruments):
            instrument.after(one, program, report)
        return report

    def _drop(self, step: int, one: Pass, program: Program, reason: str) -> None:
        for instrument in self.instruments:
            instrument.refused(one, program, reason)
        self.rows.append(taken_back_row(step, one, Verdict(step, reason, dropped=True)))

    def _refuse(self, step: int, one: Pass, program: Program, error: Exception, report: Report | None = None) -> None:
        reason = str(error) if isinstance(error, IRXError) else f"{type(error).__name__}: {error}"
        if not isinstance(error, PassRefused) and os.environ.get("IRX_DEBUG", "0") not in ("", "0"):
            print("".join(traceback.format_exception(error)), file=sys.stderr)
        if self.strict:
            raise _refused(one, reason, step) from error
        for instrument in self.instruments:
            instrument.refused(one, program, reason)
        self.rows.append(refused_row(step, one, reason, report))


def _excess(one: Pass, report: Report) -> str | None:
    """Why the measured error is too large for the pass's effect."""
    limit = LARGEST_ERROR.get(one.effect)
    if limit is None or report.error is None or report.error <= limit:
        return None
    return f"its checks measured an error of {report.error:.2g}, and {one.effect.name} allows {limit:g}"


def _refused(one: Pass, reason: str, step: int) -> PassRefused:
    return PassRefused(f"pass {one.name!r} was refused: {reason}", where=f"step {step} of the pipeline")


def _verdict(instruments: Sequence[Instrument], program: Program, kept: Sequence[Kept], ctx: Context) -> Verdict | None:
    found = (instrument.judge(program, kept, ctx) for instrument in instruments)
    return next((verdict for verdict in found if verdict is not None), None)
