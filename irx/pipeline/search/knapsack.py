"""The warm start: the best level of every unit, as if damages added up and each gained the same beside the others.

Exact: of all choices so far only those stay that no other one beats in both damage and gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from irx.pipeline.search.levels import Configuration


@dataclass(frozen=True)
class Option:
    """One level of one unit alone: the share of the budget that it takes, and what it gains."""

    level: int
    damage: float
    gain: float


@dataclass(frozen=True)
class _Choice:
    damage: float = 0.0
    gain: float = 0.0
    levels: Configuration = ()


NONE = Option(0, 0.0, 0.0)


def knapsack(units: Sequence[Sequence[Option]], allowed: float) -> Configuration:
    """The levels with the largest sum of gains whose damages add up to `allowed` at most; of equals the least damage.

    Every unit may also stay as it is.
    """
    choices = [_Choice()]
    for options in units:
        longer = [_with(choice, option) for choice in choices for option in (NONE, *options)]
        choices = _best([choice for choice in longer if choice.damage <= allowed])
    return choices[-1].levels if choices else (0,) * len(units)


def _with(choice: _Choice, option: Option) -> _Choice:
    return _Choice(choice.damage + option.damage, choice.gain + option.gain, (*choice.levels, option.level))


def _best(choices: Sequence[_Choice]) -> list[_Choice]:
    """Those that gain more than every choice of less damage, by ascending damage and gain."""
    found: list[_Choice] = []
    for choice in sorted(choices, key=lambda one: (one.damage, -one.gain, one.levels)):
        if not found or choice.gain > found[-1].gain:
            found.append(choice)
    return found
