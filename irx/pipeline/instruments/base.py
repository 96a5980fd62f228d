"""What an instrument is: something told before and after every pass, that may refuse what the pass did.

Instruments stand around a pass like shells: `before` is called from the first to the last, `after` from the last to the
first. One object may watch many pipelines, one after the other: `begin` starts it anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from irx.errors import IRXError
from irx.ir.program import Program
from irx.ledger import Ledger
from irx.pipeline.base import Context, Pass, Report


@dataclass(frozen=True)
class Kept:
    """A pass that was accepted: its place in the pipeline, the program that it gave, and how many sites it rewrote."""

    step: int
    one: Pass
    program: Program
    sites: int


@dataclass(frozen=True)
class Verdict:
    """A pass that turned out wrong only when all had run, or, where it is `dropped`, not worth it."""

    step: int
    reason: str
    dropped: bool = False


class Dropped(IRXError):
    """Raised by `Instrument.after`: the pass did nothing wrong but is not wanted; the pipeline goes on without it."""


class Instrument:
    """Base of all instruments; every method may be left as it is."""

    def plan(self, passes: Sequence[Pass]) -> None:
        """These passes will run, one after the other; told before `begin`, without those that were taken back."""

    def begin(self, program: Program, ctx: Context) -> None:
        """The pipeline starts on this program. What is raised here reaches the caller."""

    def before(self, one: Pass, program: Program) -> None:
        """A pass is about to change this program."""

    def after(self, one: Pass, program: Program, report: Report) -> None:
        """The pass has changed the program. An IRXError raised here refuses it, Dropped drops it."""

    def refused(self, one: Pass, program: Program, reason: str) -> None:
        """The pass was refused, with the program as it left it."""

    def judge(self, captured: Program, kept: Sequence[Kept], ctx: Context) -> Verdict | None:
        """All passes have run: the one that has to be taken back, if any. The pipeline then runs again without it."""
        return None

    def end(self, passes: Sequence[Pass], ledger: Ledger) -> None:
        """The ledger is complete but for what this instrument has to say; `Row.step` counts `passes`."""
