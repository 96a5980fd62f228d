"""Rows that cannot be measured say why, and cost no other row."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

from irx.bench.baselines.absent import Absent
from irx.bench.result import Result
from irx.errors import IRXError


def guarded(found: Result, measure: Callable[[], Result]) -> Result:
    """What is measured for a row, else the row with the error's name and message."""
    try:
        return measure()
    except Exception as error:
        return found.without(*reason(error))


def each(found: Result, measure: Callable[[], Iterable[Result]]) -> Iterator[Result]:
    """Rows one by one; `found` stands for those behind an error."""
    try:
        yield from measure()
    except Exception as error:
        yield found.without(*reason(error))


def reason(error: Exception) -> tuple[str, str]:
    """A verdict and a note; with IRX_DEBUG set, the error itself is raised where it is not one of ours."""
    if isinstance(error, (Absent, IRXError)):
        return "absent", f"{type(error).__name__}: {error}"
    if os.environ.get("IRX_DEBUG", "0") not in ("", "0"):
        raise error
    return "wrong", f"it fails with {type(error).__name__}: {error}"
