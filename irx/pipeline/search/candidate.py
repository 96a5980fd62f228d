"""What a search has found: candidates, which of them is best, and how they are told in a line."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from irx.pipeline.search.levels import Configuration
from irx.pipeline.search.outcome import Outcome

COMMON = 0.03  # of the time: noise beyond it is that of regions which candidates share, and which are timed once


@dataclass(frozen=True)
class Candidate:
    """A configuration that was measured: the text of its passes, its outcome, and its share of the budget.

    Of a `rough` one, which is outside, the share is that of a first look and the time is predicted.
    """

    text: str
    configuration: Configuration
    outcome: Outcome
    share: float
    rough: bool = False

    @property
    def inside(self) -> bool:
        """True within the budget."""
        return self.share <= 1

    @property
    def usable(self) -> bool:
        """True for what was measured in full, inside the budget or not."""
        return math.isfinite(self.share) and not self.rough

    def ties(self, other: Candidate) -> bool:
        """True where the two are equally fast, as far as can be measured."""
        band = math.hypot(self.outcome.noise, other.outcome.noise)
        return abs(self.outcome.seconds - other.outcome.seconds) <= min(band, COMMON * self.outcome.seconds)

    @property
    def fitness(self) -> tuple[bool, float, float]:
        """Smaller is better: inside the budget, then fast, then close to the original."""
        return (not self.inside, self.outcome.seconds if self.inside else self.share, self.share)

    def line(self) -> str:
        """Its time, its share and its figures; or why it cannot be used."""
        if self.outcome.reason:
            return f"{self.text}: {self.outcome.reason}"
        figures = ", ".join(f"{name} {value:.4g}" for name, value in self.outcome.figures.items())
        where = "a first look at calibration data" if self.rough else "calibration data"
        spent = f"{100 * self.share:.3g} % of the budget on {where}"
        time = f"{1e3 * self.outcome.seconds:.3g} ms a step{' as predicted' if self.rough else ''}"
        return f"{time}, {spent} ({figures}): {self.text or 'nothing lossy'}"


@dataclass(frozen=True)
class Found:
    """What a search found: candidates inside the budget, best first and the unchanged program last, the front, and
    every candidate that can be used."""

    ranked: tuple[Candidate, ...]
    front: tuple[Candidate, ...]
    notes: tuple[str, ...]
    usable: tuple[Candidate, ...] = ()


def best_of(candidates: Iterable[Candidate]) -> Candidate:
    """The fastest inside the budget; of those that are as fast within the noise, the closest to the original."""
    known = list(candidates)
    fastest = min(known, key=lambda one: (one.fitness, one.configuration))
    ties = [one for one in known if one.inside == fastest.inside and one.ties(fastest)] if fastest.inside else []
    return min((fastest, *ties), key=lambda one: (one.share, one.outcome.seconds, one.configuration))


def ranked_of(candidates: Iterable[Candidate], exact: Candidate) -> tuple[Candidate, ...]:
    """Those inside the budget, best first; the unchanged program is the last resort, and what is slower no answer."""
    inside = [one for one in candidates if one.inside and one.outcome.seconds < exact.outcome.seconds]
    ordered: list[Candidate] = []
    while inside:
        ordered.append(best_of(inside))
        inside.remove(ordered[-1])
    return (*ordered, exact)


def front_of(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Candidates, also outside the budget, than which none is both faster and closer; the closest first."""
    found: list[Candidate] = []
    usable = [one for one in candidates if one.usable]
    for one in sorted(usable, key=lambda one: (one.share, one.outcome.seconds, one.configuration)):
        if not found or one.outcome.seconds < found[-1].outcome.seconds:
            found.append(one)
    return tuple(found)
