"""Quality: what every lossy pass costs on held-out data, and passes that lead over the budget dropped.

After a lossy pass that changed something, the whole program so far is measured beside the captured one. Its row gets
the loss that is nearest to its limit as `spent`, with what is left, and all figures; without a budget, the first loss.
From a pass that changes graphs with a cache and not `forward` on, decoding is measured, which alone shows what it did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from irx.analysis.calibration import FORWARD
from irx.budget import Budget, Limit, loss
from irx.ir.program import Program
from irx.ledger import KEPT, Ledger, Row
from irx.pipeline.base import Context, Effect, Pass, Report
from irx.pipeline.instruments.base import Dropped, Instrument

Figures: TypeAlias = Mapping[str, float]
"""Quality by name, as `Budget` and the ledger spell it."""
Measure: TypeAlias = Callable[[Program, bool], Figures]
"""Compares a program with the captured one: by what `forward` computes, or by what decoding does."""


@dataclass(frozen=True)
class _Spent:
    limit: Limit
    loss: float
    figures: Figures

    @property
    def share(self) -> float:
        """How much of the limit is used; above 1 is over the budget."""
        most = self.limit.most
        if most is None:
            return 0.0
        return self.loss / most if most > 0 else math.copysign(math.inf, self.loss - most)


@dataclass
class Quality(Instrument):
    """Measures with `measure`; without a budget nothing is dropped."""

    measure: Measure
    budget: Budget | None = None
    history: list[Pass] = field(default_factory=list, init=False)
    decoding: bool = field(default=False, init=False)  # a pass that was kept shows in decoding alone
    known: dict[tuple[int, ...], _Spent] = field(default_factory=dict, init=False)  # by the passes so far
    found: dict[int, _Spent] = field(default_factory=dict, init=False)  # by id: equal passes may stand twice

    def begin(self, program: Program, ctx: Context) -> None:
        """Start anew; what was measured after the same passes is not measured again."""
        self.history.clear()
        self.decoding = False
        self.found.clear()

    def after(self, one: Pass, program: Program, report: Report) -> None:
        """Measure a lossy pass. Raises Dropped where it leads over the budget."""
        if one.effect is Effect.LOSSY and report.sites:
            key = (*map(id, self.history), id(one))
            decoding = self.decoding or all(site.graph != FORWARD for site in report.sites)
            if key not in self.known:
                self.known[key] = self._spent(program, decoding)
            spent = self.found[id(one)] = self.known[key]
            if spent.limit.exceeded(spent.loss):
                raise Dropped(_reason(spent))
            if self.budget is not None and self.budget.exact:
                raise Dropped("the budget allows nothing that changes the function")
            self.decoding = decoding
        self.history.append(one)

    def refused(self, one: Pass, program: Program, reason: str) -> None:
        """Forget a pass that another instrument did not like."""
        if self.history and self.history[-1] is one:
            self.history.pop()

    def end(self, passes: Sequence[Pass], ledger: Ledger) -> None:
        """Enter the losses, each in the first row of its pass, and the figures of the program behind all of them."""
        entered: set[int] = set()
        for i, row in enumerate(ledger.rows):
            spent = self.found.get(id(passes[row.step]))
            if spent is not None and row.step not in entered:
                ledger.rows[i] = _entered(row, spent)
                entered.add(row.step)
                ledger.summary.quality = dict(spent.figures) if row.decision == KEPT else ledger.summary.quality
        if self.budget is not None and not any(one.effect is Effect.LOSSY for one in passes):
            ledger.notes.append("nothing of the budget is spent: the pipeline names no lossy pass")
        self.known.clear()

    def _spent(self, program: Program, decoding: bool) -> _Spent:
        figures = self.measure(program, decoding)
        limits = self.budget.limits() if self.budget is not None else (loss(next(iter(figures))),)
        found = [_Spent(limit, limit.spent(figures), figures) for limit in limits]
        return max(found, key=lambda spent: (spent.limit.exceeded(spent.loss), spent.share))


def _reason(spent: _Spent) -> str:
    return f"over budget: {spent.limit.loss} {spent.loss:.3g} of {spent.limit.most:.3g}"


def _entered(row: Row, spent: _Spent) -> Row:
    figures = {name: value for name, value in spent.figures.items() if math.isfinite(value)}
    return replace(row, metric=spent.limit.loss, spent=_finite(spent.loss), left=_left(spent), quality=figures)


def _left(spent: _Spent) -> float | None:
    most, lost = spent.limit.most, _finite(spent.loss)
    return most - lost if most is not None and lost is not None else None


def _finite(value: float) -> float | None:
    """JSON has no NaN; the reason of the row says that it was one."""
    return value if math.isfinite(value) else None
