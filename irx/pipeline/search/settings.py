"""What a user may say about a search.

irx.compile(model, budget=irx.Budget(kl=0.05), data=texts, search=irx.Search(minutes=3))
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.errors import BadOption
from irx.pipeline.search.levels import STAGES, Unit


@dataclass(frozen=True)
class Search:
    """How long to search and how: at most about `minutes`, `population` offspring in a generation, all from `seed`.

    `prompt` is how many tokens of prompts there are for every token that is written: 0 looks at decode steps alone.
    `families` are those of depth, tokens, attention, cache and weights that are searched, all where none is named. The
    limit is looked at between two candidates, so the last one may end after it. Equal seeds give equal searches, as far
    as equal programs are measured to be equally fast. Raises BadOption for values that no search can have.
    """

    minutes: float = 20.0
    seed: int = 0
    population: int = 8
    prompt: float = 0.0
    families: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.minutes >= 0:
            raise BadOption(f"minutes is {self.minutes}, but must be at least 0")
        if self.population < 1:
            raise BadOption(f"population is {self.population}, but must be at least 1")
        if not self.prompt >= 0:
            raise BadOption(f"prompt is {self.prompt}, but must be at least 0")
        for family in self.families:
            if family not in STAGES:
                raise BadOption(f"families has {family!r}, but there are {', '.join(STAGES)}")

    def wants(self, unit: Unit) -> bool:
        """True for a unit that this search tries."""
        return (not self.families or unit.family in self.families) and (self.prompt > 0 or not unit.prompts)
