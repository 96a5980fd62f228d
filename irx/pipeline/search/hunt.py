"""The search: every level alone, a knapsack over these, then an evolution whose candidates are measured as a whole.

Sums of the damages of single levels mislead, so they choose where to begin and what to try, and never what is good.
Paper: Sieberling et al. 2024, EvoPress, arXiv:2410.14649: offspring by a few switches of levels, the parent competes,
the budget is the same for all.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from irx.budget import Budget
from irx.pipeline.search.knapsack import Option, knapsack
from irx.pipeline.search.levels import FAMILIES, Configuration, Unit, spelled
from irx.pipeline.search.outcome import Measure, Outcome, share
from irx.pipeline.search.settings import Search

HOPELESS = 2.0  # of the budget: a level that takes more alone is not made stronger, nor tried beside others
OPTIMISM = 1.5  # of the budget: candidates whose damages add up to more are not measured
STARTS = (1.0, 0.75, 0.5, 0.25)  # of the budget: what the warm start may spend, less each time that it is outside
COMMON = 0.03  # of the time: noise beyond it is that of regions which candidates share, and which are timed once
FOR_FINE = 0.6  # of the time: after it no fine unit is tried alone
ELITE = 4  # candidates that have offspring
TRIES = 64  # switches that are drawn for one offspring before there is none

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A configuration that was measured: the text of its passes, its outcome, and its share of the budget."""

    text: str
    configuration: Configuration
    outcome: Outcome
    share: float

    @property
    def inside(self) -> bool:
        """True within the budget."""
        return self.share <= 1

    def ties(self, other: Candidate) -> bool:
        """True where the two are equally fast, as far as can be measured."""
        band = math.hypot(self.outcome.noise, other.outcome.noise)
        return abs(self.outcome.seconds - other.outcome.seconds) <= min(band, COMMON * self.outcome.seconds)

    @property
    def fitness(self) -> tuple[bool, float, float]:
        """Smaller is better: inside the budget, then fast, then close to the original."""
        return (not self.inside, self.outcome.seconds if self.inside else self.share, self.share)


@dataclass(frozen=True)
class Found:
    """What a search found: candidates inside the budget, best first and the unchanged program last, the front, and
    every candidate that can be used."""

    ranked: tuple[Candidate, ...]
    front: tuple[Candidate, ...]
    notes: tuple[str, ...]
    usable: tuple[Candidate, ...] = ()


@dataclass
class Hunt:
    """One search over `units` under `budget`; `clock` counts seconds."""

    units: Sequence[Unit]
    measure: Measure
    budget: Budget
    settings: Search = field(default_factory=Search)
    clock: Callable[[], float] = time.monotonic
    seen: dict[Configuration, Candidate] = field(default_factory=dict, init=False)
    parents: list[Candidate] = field(default_factory=list, init=False)
    """The best so far behind every stage and generation."""
    first: float | None = field(default=None, init=False)
    """Seconds until there was a faster candidate inside the budget."""
    latest: float = field(default=0.0, init=False)
    """Seconds until the best was found."""

    def run(self) -> Found:
        """Search until the time is over or nothing new is left to try."""
        self.started, self.random = self.clock(), random.Random(self.settings.seed)
        exact = (0,) * len(self.units)
        self.base = self.measure("")
        self.seen[exact] = Candidate("", exact, self.base, 0.0)
        ended = self._search()
        usable = tuple(one for one in self.seen.values() if math.isfinite(one.share))
        return Found(self._ranked(), self._front(), tuple(self._notes(ended)), usable)

    def _search(self) -> str:
        if self.budget.exact:
            return "the budget allows nothing that changes the function"
        self._alone(fine=False)
        self._begin()
        if any(unit.fine for unit in self.units):
            self._alone(fine=True)
            self._begin()
        while self._time_left():
            if not self._generation():
                return "nothing new was left to try"
        return f"the limit of {self.settings.minutes:g} minutes was reached"

    def _alone(self, *, fine: bool) -> None:
        """Every level of every unit alone, weak ones first; units take turns, but for the family that takes longest.

        What is left of the time is not all for fine units: there are many.
        """
        for _, level, _, turn in sorted(self._turns(fine)):
            unit = abs(turn)
            weaker = self._single(unit, level - 1)
            early = not fine or self.clock() - self.started < FOR_FINE * self.settings.minutes * 60
            if weaker is not None and not _hopeless(weaker) and early:
                self._candidate(self._only(unit, level))
        self._remember()

    def _turns(self, fine: bool) -> Iterator[tuple[bool, int, int, int]]:
        """In each family the last unit first: those before it mostly look at data, which takes long."""
        for index, unit in enumerate(self.units):
            rank = FAMILIES.index(unit.family)
            for level in range(1, 1 + len(unit.levels) if unit.fine == fine else 0):
                yield unit.family == FAMILIES[-1], level, rank, index if fine else -index

    def _begin(self) -> None:
        """The warm start, with less of the budget each time that it turns out to be outside."""
        for allowed in STARTS:
            found = self._candidate(knapsack(self._options(), allowed))
            if found is None or found.inside:
                break
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
        levels = list(parent)
        steps = self.random.choice([(1,), (-1,), (1, -1)])
        for unit, step in zip(self.random.sample(range(len(levels)), min(len(steps), len(levels))), steps):
            known = self._usable(unit)
            levels[unit] = known[min(max(known.index(levels[unit]) + step, 0), len(known) - 1)]
        return tuple(levels)

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

    def _options(self) -> list[list[Option]]:
        """What is known of single levels. Factors of time multiply, so their logarithms add up."""
        found = []
        for unit in range(len(self.units)):
            alone = [one for level in self._usable(unit)[1:] if (one := self._single(unit, level)) is not None]
            found.append([self._option(unit, one) for one in alone])
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
            outcome = self.measure(text)
            found = Candidate(text, configuration, outcome, share(outcome, self.budget, self.base))
            before = self._best()
            self.seen[configuration] = found
            self._note_time(found, before)
            logger.info("search: %s", _line(found))
        return self.seen[configuration]

    def _note_time(self, found: Candidate, before: Candidate) -> None:
        """When there was something to use, and when what is best now."""
        if found.inside and self._best() is found and found is not before:
            self.latest = self.clock() - self.started
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
        return _best(self.seen.values())

    def _elite(self) -> list[Configuration]:
        """The best few: what is best alone may be one that goes with nothing else."""
        inside = sorted((one for one in self.seen.values() if one.inside), key=lambda one: one.fitness)
        return [one.configuration for one in inside[:ELITE]]

    def _remember(self) -> None:
        self.parents.append(self._best())

    def _time_left(self) -> bool:
        return self.clock() - self.started < self.settings.minutes * 60

    def _ranked(self) -> tuple[Candidate, ...]:
        """The unchanged program is the last resort; what is slower than it is no answer."""
        exact = self.seen[(0,) * len(self.units)]
        inside = [one for one in self.seen.values() if one.inside and one.outcome.seconds < exact.outcome.seconds]
        ordered: list[Candidate] = []
        while inside:
            ordered.append(_best(inside))
            inside.remove(ordered[-1])
        return (*ordered, exact)

    def _front(self) -> tuple[Candidate, ...]:
        """Candidates, also outside the budget, than which none is both faster and closer; the closest first."""
        found: list[Candidate] = []
        usable = [one for one in self.seen.values() if math.isfinite(one.share)]
        for one in sorted(usable, key=lambda one: (one.share, one.outcome.seconds, one.configuration)):
            if not found or one.outcome.seconds < found[-1].outcome.seconds:
                found.append(one)
        return tuple(found)

    def _notes(self, ended: str) -> Iterator[str]:
        unusable = [one for one in self.seen.values() if one.outcome.reason]
        yield f"search: {len(self.seen)} candidates, {len(unusable)} of them unusable; {ended}"
        if self.first is not None:
            yield f"search: a first answer after {self.first:.0f} s, the best after {self.latest:.0f} s"
        yield from (f"search: unusable: {one.text}: {one.outcome.reason}" for one in unusable)
        yield from (f"search: on the front: {_line(one)}" for one in self._front())


def _best(candidates: Iterable[Candidate]) -> Candidate:
    """The fastest inside the budget; of those that are as fast within the noise, the closest to the original."""
    known = list(candidates)
    fastest = min(known, key=lambda one: (one.fitness, one.configuration))
    ties = [one for one in known if one.inside == fastest.inside and one.ties(fastest)] if fastest.inside else []
    return min((fastest, *ties), key=lambda one: (one.share, one.outcome.seconds, one.configuration))


def _hopeless(one: Candidate) -> bool:
    return one.share > HOPELESS and not one.outcome.reason


def _line(one: Candidate) -> str:
    if one.outcome.reason:
        return f"{one.text}: {one.outcome.reason}"
    figures = ", ".join(f"{name} {value:.4g}" for name, value in one.outcome.figures.items())
    spent = f"{100 * one.share:.3g} % of the budget on calibration data"
    return f"{1e3 * one.outcome.seconds:.3g} ms a step, {spent} ({figures}): {one.text or 'nothing lossy'}"
