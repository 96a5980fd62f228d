"""Which schedule to try next: the starts, then the neighbours of the best one, and now and then one drawn at random."""

from __future__ import annotations

import random
from collections.abc import Sequence

from irx.tuning.space import Schedule, Space

EVERY = 4  # one candidate in so many is drawn at random


class Climb:
    """Proposes untried schedules of a space, and is told how they did. The same seed and answers give the same order.

    Near the best schedule so far every step in one knob is tried. When none is left, all are drawn at random, until the
    space is exhausted.
    """

    def __init__(self, space: Space, starts: Sequence[Schedule] = (), seed: int = 0) -> None:
        self.space = space
        self._source = random.Random(seed)
        self._starts = list(starts)
        self._tried: set[Schedule] = set()
        self._best: tuple[float, Schedule] | None = None

    def next(self) -> Schedule | None:
        """A schedule that was not tried yet, None when there is none left that can be found."""
        while self._starts:
            start = self._starts.pop(0)
            if start not in self._tried and self.space.allows(start):
                return self._take(start)
        wander = len(self._tried) % EVERY == EVERY - 1
        chosen = None if wander else self._near()
        chosen = chosen or self._anywhere() or self._near()
        return self._take(chosen) if chosen else None

    def tell(self, schedule: Schedule, seconds: float | None) -> None:
        """The time of a schedule; None where it failed or was refused."""
        if seconds is not None and (self._best is None or seconds < self._best[0]):
            self._best = (seconds, schedule)

    def _take(self, schedule: Schedule) -> Schedule:
        self._tried.add(schedule)
        return schedule

    def _near(self) -> Schedule | None:
        if self._best is None:
            return None
        near = [schedule for schedule in self.space.neighbours(self._best[1]) if schedule not in self._tried]
        return self._source.choice(near) if near else None

    def _anywhere(self) -> Schedule | None:
        drawn = self.space.sample(self._source)
        if drawn is not None and drawn not in self._tried:
            return drawn
        # The space may be nearly exhausted: what is left of a small one is listed.
        if self.space.combinations > 4096:
            return None
        left = [schedule for schedule in self.space if schedule not in self._tried]
        return self._source.choice(left) if left else None
