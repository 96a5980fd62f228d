"""Size: by how many bytes each pass changes what the model holds, in the first of its rows.

Counted are the weights that graphs read and one row of the caches at the longest length, as their types say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from irx.analysis.footprint import footprint
from irx.ir.program import Program
from irx.ledger import Ledger
from irx.pipeline.base import Context, Pass, Report
from irx.pipeline.instruments.base import Instrument


class Size(Instrument):
    """Bytes behind each pass less those before it."""

    def __init__(self) -> None:
        self.changes: dict[int, int] = {}  # by id: equal passes may stand in a pipeline twice
        self.tokens = self.held = 0

    def begin(self, program: Program, ctx: Context) -> None:
        """Forget an earlier pipeline, and count what there is."""
        self.changes.clear()
        self.tokens = ctx.max_length
        self.held = footprint(program, self.tokens)

    def after(self, one: Pass, program: Program, report: Report) -> None:
        """Count again where something was done."""
        if report.sites:
            held = footprint(program, self.tokens)
            self.changes[id(one)], self.held = held - self.held, held

    def refused(self, one: Pass, program: Program, reason: str) -> None:
        """Nothing has changed."""
        self.held -= self.changes.pop(id(one), 0)

    def end(self, passes: Sequence[Pass], ledger: Ledger) -> None:
        """Enter the changes."""
        told: set[int] = set()
        for index, row in enumerate(ledger.rows):
            change = self.changes.get(id(passes[row.step]))
            if change is not None and row.step not in told:
                ledger.rows[index] = replace(row, bytes=change)
                told.add(row.step)
