"""Paired differences: whether one method does better than another on the same items, or whether that is undecided."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from irx.bench.timing import Spread

# Two-sided 95 % points of Student's t, by degrees of freedom; between two the larger one holds.
_POINTS = {
    1: 12.71,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    7: 2.365,
    10: 2.228,
    15: 2.131,
    20: 2.086,
    30: 2.042,
    60: 2.0,
}
_NORMAL = 1.96


@dataclass(frozen=True)
class Paired:
    """The mean of `count` differences and its 95 % interval."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def verdict(self) -> str:
        """`holds` where the interval is above zero, `reversed` where it is below, else `undecided`."""
        return "holds" if self.low > 0 else "reversed" if self.high < 0 else "undecided"

    @property
    def spread(self) -> Spread:
        """As a figure of the bench, which prints the interval in brackets."""
        return Spread(self.mean, self.low, self.high)

    def __str__(self) -> str:
        return f"{self.mean:+.4g} ({self.low:+.4g} to {self.high:+.4g}) in {self.count} pairs"


def paired(differences: Sequence[float]) -> Paired:
    """The interval of Student's t; of a single difference nothing is known."""
    count, mean = len(differences), statistics.fmean(differences)
    if count < 2:
        return Paired(mean, -math.inf, math.inf, count)
    band = _point(count - 1) * statistics.stdev(differences) / math.sqrt(count)
    return Paired(mean, mean - band, mean + band, count)


def _point(freedom: int) -> float:
    known = [point for least, point in _POINTS.items() if least <= freedom]
    return known[-1] if freedom < 240 else _NORMAL
