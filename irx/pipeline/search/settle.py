"""Held-out data decide: what the search found is compiled, best first, until one is inside the budget there as well."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from irx.budget import Budget
from irx.ir.program import Program
from irx.ledger import KEPT, Ledger, Point, Row
from irx.pipeline.base import Effect
from irx.pipeline.search.candidate import Candidate, Found

Compile: TypeAlias = Callable[[str], tuple[Program, Ledger]]
"""What the text of lossy passes makes of the program; passes that lead over the budget on held-out data are dropped."""
Confirm: TypeAlias = Callable[[str], Mapping[str, float]]
"""The figures of lossy passes on held-out data."""

logger = logging.getLogger(__name__)


def settle(found: Found, compile: Compile, budget: Budget, confirm: Confirm | None = None) -> tuple[Program, Ledger]:
    """The fastest candidate all of whose passes stay on held-out data, with the notes of the search in its ledger.

    Behind one that fails, only those are tried that took less of the budget, by as much as that one was over it: what
    is harder on these texts is harder for all. The unchanged program, which comes last, cannot fail. Compiling takes
    long, so `confirm` is asked first.
    """
    failed: list[str] = []
    below = math.inf  # the share of the budget, on calibration data, from which none is expected to stay inside
    for one in found.ranked:
        if one.text and one.share >= below:
            continue
        figures = confirm(one.text) if one.text and confirm is not None else {}
        reasons = _exceeded(figures, budget) if figures else []
        if not reasons:
            program, ledger = compile(one.text)
            reasons = lost(ledger.rows)
        if not reasons or not one.text:
            break
        failed.append(f"search: outside on held-out data: {one.text} ({'; '.join(reasons)})")
        logger.info(failed[-1])
        below = one.share / max(1.0, _spent(figures, budget))
    ledger.notes += [*found.notes, *failed, f"search: chosen: {one.text or 'nothing lossy'}"]
    ledger.points = [_point(known, found, one) for known in found.usable]
    return program, ledger


def _point(one: Candidate, found: Found, chosen: Candidate) -> Point:
    figures = {name: value for name, value in one.outcome.figures.items() if math.isfinite(value)}
    seconds, noise = one.outcome.seconds, one.outcome.noise
    return Point(one.text, seconds, one.share, noise, figures, front=one in found.front, chosen=one is chosen)


def _exceeded(figures: Mapping[str, float], budget: Budget) -> list[str]:
    """The losses that are over their limit."""
    spent = {limit: limit.spent(figures) for limit in budget.limits()}
    return [f"{limit.loss} {loss:.3g} of {limit.most:.3g}" for limit, loss in spent.items() if limit.exceeded(loss)]


def _spent(figures: Mapping[str, float], budget: Budget) -> float:
    """How many times the budget was spent, of several limits on the one that is over the most."""
    return max((limit.spent(figures) / limit.most for limit in budget.limits() if figures and limit.most), default=1.0)


def lost(rows: Sequence[Row]) -> list[str]:
    """The lossy passes that were refused, or dropped for more than that they bring nothing beside others, and why."""
    gone = [row for row in rows if row.effect == Effect.LOSSY.value and row.decision != KEPT and not row.unpaid]
    return [f"{row.name}: {row.reason}" for row in gone]
