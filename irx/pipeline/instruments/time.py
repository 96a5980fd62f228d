"""Time: how long each pass takes, in its rows of the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter

from irx.ir.program import Program
from irx.ledger import Ledger
from irx.pipeline.base import Context, Pass, Report
from irx.pipeline.instruments.base import Instrument


class Time(Instrument):
    """Seconds of wall clock that each pass takes. Stands last, so that it times no other instrument."""

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}  # by id: equal passes may stand in a pipeline twice
        self.start = 0.0

    def begin(self, program: Program, ctx: Context) -> None:
        """Forget an earlier pipeline."""
        self.seconds.clear()

    def before(self, one: Pass, program: Program) -> None:
        """Start the clock."""
        self.start = perf_counter()

    def after(self, one: Pass, program: Program, report: Report) -> None:
        """Stop the clock."""
        self.seconds[id(one)] = perf_counter() - self.start

    def refused(self, one: Pass, program: Program, reason: str) -> None:
        """Stop the clock, unless the pass was refused for its result."""
        self.seconds.setdefault(id(one), perf_counter() - self.start)

    def end(self, passes: Sequence[Pass], ledger: Ledger) -> None:
        """Give the first row of every pass its seconds."""
        told: set[int] = set()
        for index, row in enumerate(ledger.rows):
            if row.step not in told:
                ledger.rows[index] = replace(row, seconds=self.seconds.get(id(passes[row.step])))
                told.add(row.step)
