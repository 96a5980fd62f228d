"""Timing candidates against each other in one run.

Machines drift: a number taken now and one taken a minute ago are not comparable. So all candidates take turns, in a
new random order each round, and what is reported is the median of each with its quartiles, and the median and quartiles
of ratios within a round.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Call: TypeAlias = Callable[[], object]

WARMUP = 5  # calls of each candidate before the first round
SETTLE = 3  # calls at the start of a turn that bring a candidate's weights and code back into the caches
SLOW = 0.25  # seconds of a call from which one call settles, and two are enough for a turn
LONG = 2.0  # seconds of a call from which none settles and one is a turn: nothing of it is left in a cache anyway


@dataclass(frozen=True)
class Timing:
    """Seconds one call took: median and quartiles over the rounds."""

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median * 1e3:.2f} ms ({self.low * 1e3:.2f} to {self.high * 1e3:.2f}, {self.rounds} rounds)"


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of any figures."""

    median: float
    low: float
    high: float


def interleave(candidates: Mapping[str, Call], *, rounds: int = 10, turn: float = 0.2) -> dict[str, Timing]:
    """Time all candidates in turns; see `samples`."""
    return {name: summary(seconds) for name, seconds in samples(candidates, rounds=rounds, turn=turn).items()}


def samples(candidates: Mapping[str, Call], *, rounds: int = 10, turn: float = 0.2) -> dict[str, list[float]]:
    """Seconds of a call of each candidate, one figure a round.

    A round gives every candidate one turn of about `turn` seconds, in random order: a few calls that do not count, then
    calls back to back, of which the mean is kept.
    """
    plans = {name: _plan(function, turn) for name, function in candidates.items()}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    order = list(candidates)
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            seconds[name].append(_turn(candidates[name], *plans[name]))
    return seconds


def summary(seconds: Sequence[float]) -> Timing:
    """Median and quartiles of the rounds."""
    found = spread(seconds)
    return Timing(found.median, found.low, found.high, len(seconds))


def spread(figures: Sequence[float]) -> Spread:
    """Median and quartiles; of a single figure, the figure itself."""
    if len(figures) == 1:
        return Spread(figures[0], figures[0], figures[0])
    low, median, high = statistics.quantiles(figures, n=4, method="inclusive")
    return Spread(median, low, high)


def _plan(function: Call, turn: float) -> tuple[int, int]:
    """How many calls of a turn settle and how many count, after the warm-up."""
    once = float("inf")
    for _ in range(WARMUP):
        start = time.perf_counter()
        function()
        once = min(once, time.perf_counter() - start)
        if once > LONG:
            return 0, 1
    return (1, 2) if once > SLOW else (SETTLE, max(2, min(1000, round(turn / once))))


def _turn(function: Call, settle: int, passes: int) -> float:
    for _ in range(settle):
        function()
    start = time.perf_counter()
    for _ in range(passes):
        function()
    return (time.perf_counter() - start) / passes
