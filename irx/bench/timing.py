"""Timing candidates against each other in one run.

Machines drift: a number taken now and one taken a minute ago are not comparable. So all candidates take turns, in a
new random order each round, and what is reported is the median of each with its quartiles, and ratios of medians.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds one call took: median and quartiles over the rounds."""

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median * 1e3:.2f} ms ({self.low * 1e3:.2f} to {self.high * 1e3:.2f}, {self.rounds} rounds)"


def interleave(
    candidates: Mapping[str, Callable[[], object]], *, rounds: int = 12, passes: int = 4, warmup: int = 3
) -> dict[str, Timing]:
    """Time all candidates in turns. Each round runs every candidate `passes` times back to back and keeps the mean.

    `warmup` calls of each come first and are not counted.
    """
    for function in candidates.values():
        for _ in range(warmup):
            function()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    order = list(candidates)
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            seconds[name].append(_mean_of(candidates[name], passes))
    return {name: _summary(samples) for name, samples in seconds.items()}


def _mean_of(function: Callable[[], object], passes: int) -> float:
    function()  # brings this candidate's weights and code back into the caches
    start = time.perf_counter()
    for _ in range(passes):
        function()
    return (time.perf_counter() - start) / passes


def _summary(samples: list[float]) -> Timing:
    low, median, high = statistics.quantiles(samples, n=4)
    return Timing(median, low, high, len(samples))
