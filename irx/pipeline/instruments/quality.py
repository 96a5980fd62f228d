"""Quality: what every lossy pass costs on held-out data, and passes that lead over the budget dropped.

After a lossy pass that changed something, the whole program so far is measured beside the captured one. Its row gets
the loss that is nearest to its limit as `spent`, with what is left, and all figures; without a budget, the first loss.
From a pass that changes graphs with a cache and not `forward` on, decoding is measured, which alone shows what it did.

Passes that a later one repairs are judged together with it: what runs is the pair. Where the pair is over the budget,
the pass that cost most of it is taken back, and the pipeline runs again; a repair that makes things worse is dropped.
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
from irx.pipeline.instruments.base import Dropped, Instrument, Kept, Verdict

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

    @property
    def exceeded(self) -> bool:
        """True over the limit."""
        return self.limit.exceeded(self.loss)


@dataclass
class Quality(Instrument):
    """Measures with `measure`; without a budget nothing is dropped."""

    measure: Measure
    budget: Budget | None = None
    history: list[Pass] = field(default_factory=list, init=False)
    decoding: bool = field(default=False, init=False)  # a pass that was kept shows in decoding alone
    known: dict[tuple[int, ...], _Spent] = field(default_factory=dict, init=False)  # by the passes so far
    found: dict[int, _Spent] = field(default_factory=dict, init=False)  # by id: equal passes may stand twice
    planned: list[Pass] = field(default_factory=list, init=False)
    waiting: dict[int, float] = field(default_factory=dict, init=False)  # passes to be repaired, with what they added
    behind: _Spent | None = field(default=None, init=False)  # the last that was kept
    taken: dict[int, _Spent] = field(default_factory=dict, init=False)  # of passes that were taken back
    verdict: tuple[Pass, str] | None = field(default=None, init=False)

    def plan(self, passes: Sequence[Pass]) -> None:
        """Know what will be repaired."""
        self.planned = list(passes)

    def begin(self, program: Program, ctx: Context) -> None:
        """Start anew; what was measured after the same passes is not measured again."""
        self.history.clear()
        self.decoding = False
        self.found.clear()
        self.waiting.clear()
        self.behind, self.verdict = None, None

    def after(self, one: Pass, program: Program, report: Report) -> None:
        """Measure a lossy pass. Raises Dropped where it leads over the budget."""
        if one.effect is Effect.LOSSY and report.sites:
            if self.verdict is not None:
                raise Dropped(f"not tried: {self.verdict[0].name} goes first")
            decoding = self.decoding or all(site.graph != FORWARD for site in report.sites)
            key = (*map(id, self.history), id(one))
            if key not in self.known:
                self.known[key] = self._spent(program, decoding)
            spent = self.found[id(one)] = self.known[key]
            if self.budget is not None and self.budget.exact:
                raise Dropped(
                    _reason(spent) if spent.exceeded else "the budget allows nothing that changes the function"
                )
            self._decide(one, spent)
            self.decoding, self.behind = decoding, spent
        self.history.append(one)

    def _decide(self, one: Pass, spent: _Spent) -> None:
        """Drop the pass, keep it, or keep it until it is repaired."""
        before = self.behind
        if one.repairs and before is not None and spent.share > before.share and self._measured_alike(spent, before):
            self._end_of_waiting(before)
            raise Dropped(f"it repairs nothing: {spent.limit.loss} {spent.loss:.3g}, and {before.loss:.3g} without it")
        if one.repairs:
            self._end_of_waiting(spent)
        elif self._repaired_later(one):
            self.waiting[id(one)] = spent.share - (before.share if before is not None else 0.0)
        elif spent.exceeded:
            raise Dropped(_reason(spent))

    def _end_of_waiting(self, spent: _Spent) -> None:
        """The passes that waited are judged by what is spent now."""
        if spent.exceeded:
            waiting = [one for one in self.history if id(one) in self.waiting]
            if waiting:
                worst = max(waiting, key=lambda one: self.waiting[id(one)])
                self.verdict = (worst, f"{_reason(spent)}, also when it is repaired")
            else:
                raise Dropped(_reason(spent))
        self.waiting.clear()

    def _repaired_later(self, one: Pass) -> bool:
        place = next((i for i, other in enumerate(self.planned) if other is one), len(self.planned))
        return any(other.repairs for other in self.planned[place + 1 :])

    @staticmethod
    def _measured_alike(spent: _Spent, before: _Spent) -> bool:
        return spent.limit.loss == before.limit.loss

    def refused(self, one: Pass, program: Program, reason: str) -> None:
        """Forget a pass that another instrument did not like."""
        if self.history and self.history[-1] is one:
            self.history.pop()

    def judge(self, captured: Program, kept: Sequence[Kept], ctx: Context) -> Verdict | None:
        """The pass that costs most of those that are over the budget even when they are repaired."""
        if self.verdict is None and self.waiting and self.behind is not None:  # the repair found nothing to do
            self._end_of_waiting(self.behind)
        if self.verdict is None:
            return None
        one, reason = self.verdict
        step = next(step.step for step in kept if step.one is one)
        self.taken[id(one)] = self.found[id(one)]
        return Verdict(step, reason, dropped=True)

    def end(self, passes: Sequence[Pass], ledger: Ledger) -> None:
        """Enter the losses, each in the first row of its pass, and the figures of the program behind all of them."""
        entered: set[int] = set()
        for i, row in enumerate(ledger.rows):
            one = id(passes[row.step])
            spent = self.found.get(one) or self.taken.get(one)
            if spent is not None and row.step not in entered:
                ledger.rows[i] = _entered(row, spent)
                entered.add(row.step)
                ledger.summary.quality = dict(spent.figures) if row.decision == KEPT else ledger.summary.quality
        if self.budget is not None and not any(one.effect is Effect.LOSSY for one in passes):
            ledger.notes.append("nothing of the budget is spent: the pipeline names no lossy pass")
        self.known.clear()
        self.taken.clear()

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
