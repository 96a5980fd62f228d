"""Schedules as data, and the space they are chosen from.

A `Schedule` is a handful of named choices, as `tile=4, unroll=2`. A `Space` is what may be chosen: knobs with their
values and defaults, and a condition on combinations. The search knows nothing else of a kernel, so a new kernel needs
no change there, and a new value of a knob none in schedules that were measured before: what a schedule does not say is
filled with the default.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TypeAlias

Choice: TypeAlias = "bool | int | float | str"

_SAMPLES = 200  # draws before a space counts as too constrained to draw from


class Schedule(Mapping[str, Choice]):
    """Choices by the name of the knob. Immutable; equal schedules have equal hashes; its JSON is a plain object."""

    __slots__ = ("_choices",)

    def __init__(self, choices: Mapping[str, Choice] | None = None, /, **more: Choice) -> None:
        self._choices: dict[str, Choice] = dict(sorted({**(choices or {}), **more}.items()))

    def __getitem__(self, name: str) -> Choice:
        return self._choices[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._choices)

    def __len__(self) -> int:
        return len(self._choices)

    def __hash__(self) -> int:
        return hash(tuple(self._choices.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self._choices == other._choices

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self._choices.items()) or "no choices"

    def __repr__(self) -> str:
        return f"Schedule({self})"

    def replace(self, name: str, value: Choice) -> Schedule:
        """The same schedule with another choice for one knob."""
        return Schedule({**self._choices, name: value})

    def to_json(self) -> dict[str, Choice]:
        """Plain data."""
        return dict(self._choices)


@dataclass(frozen=True)
class Knob:
    """One choice: its values, in their natural order where they have one, and the value without measurements.

    The neighbours of a value are those beside it, or, where the values are not `ordered`, all others.
    """

    name: str
    values: tuple[Choice, ...]
    default: Choice
    ordered: bool = True

    def __post_init__(self) -> None:
        if not self.allows(self.default):
            raise ValueError(f"knob {self.name!r}: the default {self.default!r} is not among {self.values}")

    def allows(self, value: object) -> bool:
        """True for one of the values. True is not 1 here, as it is not in a kernel's text."""
        return any(value == known and type(value) is type(known) for known in self.values)

    def neighbours(self, value: Choice) -> tuple[Choice, ...]:
        """The values worth trying next to this one."""
        if not self.ordered:
            return tuple(other for other in self.values if other != value)
        at = self.values.index(value)
        return self.values[max(at - 1, 0) : at] + self.values[at + 1 : at + 2]


@dataclass(frozen=True)
class Space:
    """Knobs, and `fits`, which says of a combination whether the kernel can have it; the defaults always fit."""

    knobs: tuple[Knob, ...] = ()
    fits: Callable[[Schedule], bool] | None = None

    def __post_init__(self) -> None:
        if len({knob.name for knob in self.knobs}) < len(self.knobs):
            raise ValueError("two knobs have the same name")
        if not self.allows(self.default()):
            raise ValueError(f"the defaults are not in the space: {self.default()}")

    @property
    def combinations(self) -> int:
        """How many there are, those that do not fit included."""
        return prod(len(knob.values) for knob in self.knobs)

    def default(self) -> Schedule:
        """Every knob at its default."""
        return Schedule({knob.name: knob.default for knob in self.knobs})

    def allows(self, schedule: Schedule) -> bool:
        """True for a schedule of exactly these knobs with values that fit together."""
        if schedule.keys() != {knob.name for knob in self.knobs}:
            return False
        known = all(knob.allows(schedule[knob.name]) for knob in self.knobs)
        return known and (self.fits is None or self.fits(schedule))

    def adopt(self, choices: Mapping[str, Choice]) -> Schedule | None:
        """A schedule measured with an older or a newer space as one of this space; None where it does not fit.

        Knobs it does not know get their default, knobs that are gone are left out.
        """
        schedule = Schedule({knob.name: choices.get(knob.name, knob.default) for knob in self.knobs})
        return schedule if self.allows(schedule) else None

    def neighbours(self, schedule: Schedule) -> Iterator[Schedule]:
        """All schedules that fit and differ in one knob by one step."""
        for knob in self.knobs:
            for value in knob.neighbours(schedule[knob.name]):
                near = schedule.replace(knob.name, value)
                if self.allows(near):
                    yield near

    def sample(self, source: random.Random) -> Schedule | None:
        """Some schedule that fits; None where none was found."""
        for _ in range(_SAMPLES):
            drawn = Schedule({knob.name: source.choice(knob.values) for knob in self.knobs})
            if self.allows(drawn):
                return drawn
        return None

    def __iter__(self) -> Iterator[Schedule]:
        """Every schedule that fits, in the order of the values."""
        for values in product(*(knob.values for knob in self.knobs)):
            schedule = Schedule(dict(zip((knob.name for knob in self.knobs), values, strict=True)))
            if self.allows(schedule):
                yield schedule
