"""The search: every level alone, a knapsack over these, then an evolution whose candidates are measured as a whole.

Families take turns, what mostly gains most first, and each ends with a warm start of its own and one with all that is
known: so there is an answer early on. A first look at few tokens comes before every full measurement, where there is
one, and rules out what is far outside.

Sums of the damages of single levels mislead, so they choose where to begin and what to try, and never what is good.
Paper: Sieberling et al. 2024, EvoPress, arXiv:2410.14649: offspring by a few switches of levels, judged on few tokens
first and then on all, the parent competes, the budget is the same for all.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from irx.budget import Budget
from irx.pipeline.search.candidate import Candidate, Found, best_of, front_of, ranked_of
from irx.pipeline.search.knapsack import Option, knapsack
from irx.pipeline.search.levels import FAMILIES, Configuration, Unit, spelled, unrepaired
from irx.pipeline.search.outcome import Measure, share
from irx.pipeline.search.runoff import Again, in_turns
from irx.pipeline.search.settings import Search

HOPELESS = (
    2.0  # of the budget: a level that takes more alone is not tried beside others; outside, none is made stronger
)
OPTIMISM = 1.5  # of the budget: candidates whose damages add up to more are not measured
STARTS = (1.0, 0.75, 0.5, 0.25)  # of the budget: what the warm start may spend, less each time that it is outside
FOR_FINE = 0.6  # of the time: after it no fine unit is tried alone
ELITE = 4  # candidates that have offspring
FINALISTS = 6  # candidates that are timed again at the end
LONG = 8.0  # minutes: so long a search times what is known again before it goes on with it
TRIES = 64  # switches that are drawn for one offspring before there is none
DOUBT = 0.3  # of the budget: how far beyond it a first look must be to rule a candidate out
REPAIRABLE = 4.0  # of the budget: what a repair may bring back inside

logger = logging.getLogger(__name__)


@dataclass
class Hunt:
    """One search over `units` under `budget`; `clock` counts seconds, from `started` where that is given.

    `glance` looks at a candidate as `measure` does, but at little data, and its seconds are predicted. `again` takes
    the times of candidates once more, in turns: what was measured in different minutes is hard to compare.
    """

    units: Sequence[Unit]
    measure: Measure
    budget: Budget
    settings: Search = field(default_factory=Search)
    clock: Callable[[], float] = time.monotonic
    glance: Measure | None = None
    again: Again | None = None
    started: float | None = None
    seen: dict[Configuration, Candidate] = field(default_factory=dict, init=False)
    parents: list[Candidate] = field(default_factory=list, init=False)
    """The best so far behind every stage and generation."""
    first: float | None = field(default=None, init=False)
    """Seconds until there was a faster candidate inside the budget."""
    latest: float = field(default=0.0, init=False)
    """Seconds until the best was found."""

    def run(self) -> Found:
        """Search until the time is over or nothing new is left to try."""
        self.begin = self.clock() if self.started is None else self.started
        self.random = random.Random(self.settings.seed)
        self.exact = (0,) * len(self.units)
        self.base = self.measure("")
        self.seen[self.exact] = Candidate("", self.exact, self.base, 0.0)
        ended = self._search()
        finalists = self._finalists()
        looked = self._time_again(finalists)
        known = self.seen.values()
        usable = tuple(one for one in known if one.usable)
        last = [self.seen[one] for one in finalists] if looked else known
        return Found(ranked_of(last, self.seen[self.exact]), front_of(known), tuple(self._notes(ended, looked)), usable)

    def _search(self) -> str:
        if self.budget.exact:
            return "the budget allows nothing that changes the function"
        for family in FAMILIES:
            self._alone(family, fine=False)
            self._warm_start(family)
            self._warm_start()
        if self.settings.minutes >= LONG:
            self._time_again([one.configuration for one in self.seen.values() if one.inside])
        self._climb()
        if any(unit.fine for unit in self.units):
            for family in FAMILIES:
                self._alone(family, fine=True)
            self._warm_start()
        while self._time_left():
            if not self._generation():
                return "nothing new was left to try"
        return f"the limit of {self.settings.minutes:g} minutes was reached"

    def _finalists(self) -> list[Configuration]:
        """The best of all, the best of every family alone, and the unchanged program."""
        ranked = ranked_of(self.seen.values(), self.seen[self.exact])
        alone = [self._best_of(family) for family in self._families]
        return list(dict.fromkeys(one.configuration for one in (*ranked[:FINALISTS], *alone, ranked[-1])))

    def _time_again(self, configurations: Sequence[Configuration]) -> bool:
        """Take the times of candidates in turns; False where they are not measured at all."""
        found = in_turns([self.seen[one] for one in configurations], self.again) if self.again is not None else []
        self.seen |= {one.configuration: one for one in found}
        self.base = self.seen[self.exact].outcome
        return bool(found)

    def _alone(self, family: str, *, fine: bool) -> None:
        """Every level of every unit of a family alone, weak ones first, as long as the weaker one was inside.

        What is left of the time is not all for fine units: there are many.
        """
        for _, level, unit in sorted(self._turns(family, fine)):
            weaker = self._single(unit, level - 1)
            early = not fine or self.clock() - self.begin < FOR_FINE * self.settings.minutes * 60
            if weaker is not None and (weaker.inside or weaker.outcome.reason) and early:
                self._candidate(self._only(unit, level))
        self._remember()

    def _turns(self, family: str, fine: bool) -> Iterator[tuple[int, int, int]]:
        """The last unit first: those before it mostly look at data, which takes long."""
        for index, unit in enumerate(self.units):
            if unit.family == family and unit.fine == fine:
                for level in range(1, 1 + len(unit.levels)):
                    yield index if fine else -index, level, index

    def _warm_start(self, family: str = "") -> None:
        """The best sum of all units, or those of a family, with less of the budget each time that it is outside."""
        for allowed in STARTS:
            found = self._candidate(knapsack(self._options(family), allowed))
            if found is None or found.inside:
                break
        self._remember()

    def _climb(self) -> None:
        """The best with every unit a level further, one after the other, until none of these is better."""
        parent: Candidate | None = None
        while parent is not self._best():
            parent = self._best()
            for unit in range(len(self.units)):
                found = self._stepped(self._best().configuration, unit, 1)
                if found in self.seen or self._promising(found):
                    self._candidate(found)
            self._remember()

    def _generation(self) -> bool:
        """Measure offspring of the best few; False where none is new."""
        parent, offspring = self._best(), list(self._offspring())
        for configuration in sorted(offspring, key=lambda one: (self._predicted_seconds(one), one)):
            found = self._candidate(configuration)
            if found is None:
                break
        self._remember()
        if self._best() is not parent:
            logger.info("search: a better one: %s", self._best().text)
        return bool(offspring)

    def _offspring(self) -> Iterator[Configuration]:
        parents, drawn = self._elite(), set[Configuration]()
        for _ in range(self.settings.population * TRIES):
            child = self._switched(self.random.choice(parents))
            if child not in drawn and child not in self.seen and self._promising(child):
                drawn.add(child)
                yield child
            if len(drawn) == self.settings.population:
                return

    def _switched(self, parent: Configuration) -> Configuration:
        """One unit a level up or down, or one up and another one down."""
        levels = parent
        steps = self.random.choice([(1,), (-1,), (1, -1)])
        for unit, step in zip(self.random.sample(range(len(levels)), min(len(steps), len(levels))), steps):
            levels = self._stepped(levels, unit, step)
        return levels

    def _stepped(self, levels: Configuration, unit: int, step: int) -> Configuration:
        """One unit a number of levels further, of those that may be used."""
        known = self._usable(unit)
        place = min(max(known.index(levels[unit]) + step, 0), len(known) - 1)
        return (*levels[:unit], known[place], *levels[unit + 1 :])

    def _promising(self, configuration: Configuration) -> bool:
        """False for what would be far outside, and for what cannot be faster than the best, if predictions hold."""
        alone = [self._single(unit, level) for unit, level in enumerate(configuration) if level]
        damage = sum(max(one.share, 0.0) for one in alone if one is not None)
        return damage <= OPTIMISM and self._predicted_seconds(configuration) < self._best().outcome.seconds * OPTIMISM

    def _predicted_seconds(self, configuration: Configuration) -> float:
        """As if every level took the same part of the time beside the others as it does alone."""
        seconds = self.base.seconds
        for unit, level in enumerate(configuration):
            one = self._single(unit, level)
            seconds *= one.outcome.seconds / self.base.seconds if one is not None and level else 1.0
        return seconds

    def _options(self, family: str) -> list[list[Option]]:
        """What is known of single levels. Factors of time multiply, so their logarithms add up."""
        found = []
        for unit, one in enumerate(self.units):
            levels = self._usable(unit)[1:] if family in ("", one.family) else []
            alone = [known for level in levels if (known := self._single(unit, level)) is not None]
            found.append([self._option(unit, known) for known in alone])
        return found

    def _option(self, unit: int, one: Candidate) -> Option:
        gain = math.log(self.base.seconds / one.outcome.seconds)
        return Option(one.configuration[unit], max(one.share, 0.0), gain)

    def _candidate(self, configuration: Configuration) -> Candidate | None:
        """A configuration, measured; None where it is not known and the time is over."""
        if configuration not in self.seen:
            if not self._time_left():
                return None
            text = spelled(self.units, configuration)
            found = self._ruled_out(text, configuration) or self._measured(text, configuration)
            before = self._best()
            self.seen[configuration] = found
            self._note_time(found, before)
            logger.info("search: %s", found.line())
        return self.seen[configuration]

    def _measured(self, text: str, configuration: Configuration) -> Candidate:
        outcome = self.measure(text)
        return Candidate(text, configuration, outcome, share(outcome, self.budget, self.base))

    def _ruled_out(self, text: str, configuration: Configuration) -> Candidate | None:
        """What a first look says of a candidate that is far outside, with or already without its repair."""
        if self.glance is None:
            return None
        without = unrepaired(text)
        for look, most in ((text, 1.0),) if without == text else ((without, REPAIRABLE), (text, 1.0)):
            outcome = self.glance(look)
            known = outcome.figures or outcome.reason
            spent = share(outcome, self.budget, self.base) if known else 0.0
            if spent > most + DOUBT:
                return Candidate(text, configuration, outcome, spent, rough=True)
        return None

    def _note_time(self, found: Candidate, before: Candidate) -> None:
        """When there was something to use, and when what is best now."""
        if found.inside and self._best() is found and found is not before:
            self.latest = self.clock() - self.begin
            self.first = self.latest if self.first is None else self.first

    def _single(self, unit: int, level: int) -> Candidate | None:
        return self.seen.get(self._only(unit, level))

    def _usable(self, unit: int) -> list[int]:
        """The levels of a unit that may stand beside others, 0 among them."""
        alone = [self._single(unit, level) for level in range(1 + len(self.units[unit].levels))]
        return [one.configuration[unit] for one in alone if one is not None and one.share <= HOPELESS]

    def _only(self, unit: int, level: int) -> Configuration:
        return tuple(level if other == unit else 0 for other in range(len(self.units)))

    def _best(self) -> Candidate:
        return best_of(self.seen.values())

    def _elite(self) -> list[Configuration]:
        """The best few: what is best alone may be one that goes with nothing else."""
        inside = sorted((one for one in self.seen.values() if one.inside), key=lambda one: one.fitness)
        return [one.configuration for one in inside[:ELITE]]

    def _remember(self) -> None:
        self.parents.append(self._best())

    def _time_left(self) -> bool:
        return self.clock() - self.begin < self.settings.minutes * 60

    def _notes(self, ended: str, looked: bool) -> Iterator[str]:
        unusable = [one for one in self.seen.values() if one.outcome.reason]
        rough = sum(one.rough and not one.outcome.reason for one in self.seen.values())
        glanced = f", {rough} ruled out by a first look" if self.glance is not None else ""
        yield f"search: {len(self.seen)} candidates, {len(unusable)} of them unusable{glanced}; {ended}"
        if self.first is not None:
            yield f"search: a first answer after {self.first:.0f} s, the best after {self.latest:.0f} s"
        if looked:
            yield "search: the last candidates were timed again, in turns"
        yield from self._family_notes()
        yield from (f"search: unusable: {one.text}: {one.outcome.reason}" for one in unusable)
        yield from (f"search: on the front: {one.line()}" for one in front_of(self.seen.values()))

    @property
    def _families(self) -> list[str]:
        return list(dict.fromkeys(unit.family for unit in self.units))

    def _best_of(self, family: str) -> Candidate:
        return best_of(one for one in self.seen.values() if one.inside and self._of(one) <= {family})

    def _family_notes(self) -> Iterator[str]:
        """The best of every family alone, and whether the best of all is one of these."""
        best = self._best()
        for family in self._families:
            found = self._best_of(family)
            yield f"search: {family} alone: {found.line() if found.text else 'nothing is faster inside the budget'}"
        if len(self._of(best)) == 1:
            yield f"search: the best is that of {self._of(best).pop()} alone: no other family gained beside it"

    def _of(self, one: Candidate) -> set[str]:
        """The families that a candidate has passes of."""
        return {unit.family for unit, level in zip(self.units, one.configuration, strict=True) if level}
