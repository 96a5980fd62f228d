"""Dump: the program before and after every pass, as text, in numbered files.

00-remove-noops.before.irx  00-remove-noops.after.irx  01-cse.before.irx  01-cse.refused.irx  ...
"""

from __future__ import annotations

from pathlib import Path

from irx.ir.printer import print_program
from irx.ir.program import Program
from irx.pipeline.base import Context, Pass, Report
from irx.pipeline.instruments.base import Instrument


class Dump(Instrument):
    """Writes into `folder`, which is made where it is missing; files of an earlier run are written over."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.count = 0

    def begin(self, program: Program, ctx: Context) -> None:
        """Count from 0 again."""
        self.count = 0
        self.folder.mkdir(parents=True, exist_ok=True)

    def before(self, one: Pass, program: Program) -> None:
        """Write the program that the pass is given."""
        self._write(one, "before", program)

    def after(self, one: Pass, program: Program, report: Report) -> None:
        """Write the program that the pass made."""
        self._write(one, "after", program)
        self.count += 1

    def refused(self, one: Pass, program: Program, reason: str) -> None:
        """Write what the refused pass left, where it can still be printed."""
        try:
            self._write(one, "refused", program)
        except (TypeError, ValueError) as error:  # a node whose attributes are no plain data, outputs without names
            self._path(one, "refused").write_text(f"// cannot be printed: {error}\n", encoding="utf-8")
        self.count += 1

    def _write(self, one: Pass, moment: str, program: Program) -> None:
        self._path(one, moment).write_text(print_program(program), encoding="utf-8")

    def _path(self, one: Pass, moment: str) -> Path:
        return self.folder / f"{self.count:02}-{one.name}.{moment}.irx"
