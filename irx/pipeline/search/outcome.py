"""What is known of a candidate: how fast it is, and how much of the budget it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from irx.budget import Budget


@dataclass(frozen=True)
class Outcome:
    """Seconds of a step, figures of quality as `irx.Budget` names them, and why a candidate cannot be used, if so.

    `noise` is the band of the seconds: two that lie in one band are equally fast.
    """

    seconds: float
    figures: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    noise: float = 0.0


Measure: TypeAlias = Callable[[str], Outcome]
"""What a candidate does, from the text of its lossy passes; the empty text stands for none."""


def unusable(reason: str) -> Outcome:
    """The outcome of a candidate that cannot be used."""
    return Outcome(math.inf, {}, reason)


def share(outcome: Outcome, budget: Budget, base: Outcome) -> float:
    """How much of the budget a candidate takes: 1 is all of it, above is outside, infinity is unusable.

    Of several limits the one that is nearest counts. What the unchanged program already loses by a user's own measure
    is not charged.
    """
    if outcome.reason:
        return math.inf
    found = 0.0
    for limit in budget.limits():
        start, spent, most = limit.spent(base.figures), limit.spent(outcome.figures), limit.most
        if most is None or limit.exceeded(spent) and not spent > most:  # what is no number is over every limit
            return math.inf
        room = most - start
        found = max(found, (spent - start) / room if room > 0 else 0.0 if spent <= start else math.inf)
    return found
