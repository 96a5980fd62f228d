"""Verify: the program must be well formed before the first pass and after each."""

from __future__ import annotations

from irx.ir.program import Program
from irx.ir.verify import verify
from irx.pipeline.base import Context, Pass, Report
from irx.pipeline.instruments.base import Instrument


class Verify(Instrument):
    """Runs the verifier; a pass that breaks a rule is refused. Raises VerifyError for a broken captured program."""

    def begin(self, program: Program, ctx: Context) -> None:
        """Check what the frontend made."""
        verify(program)

    def after(self, one: Pass, program: Program, report: Report) -> None:
        """Check what the pass made."""
        verify(program)
