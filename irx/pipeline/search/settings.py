"""What a user may say about a search.

irx.compile(model, budget=irx.Budget(kl=0.05), data=texts, search=irx.Search(minutes=3))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from irx.errors import BadOption, UnsupportedArgument
from irx.pipeline.search.levels import STAGES, Unit

LONG = 512  # tokens behind which caches are what steps read


@dataclass(frozen=True)
class Search:
    """How long to search and how: at most about `minutes`, `population` offspring in a generation, all from `seed`.

    `prompt` is how many tokens of prompts there are for every token that is written: 0 looks at decode steps alone.
    Behind `context` tokens, as `irx.compile` says, rings, evictions and codes with tails are tried from 512 on.
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

    def wants(self, unit: Unit, context: int) -> bool:
        """True for a unit that this search tries, of steps behind so many tokens."""
        shown = (self.prompt > 0 or not unit.prompts) and (context >= LONG or not unit.contexts)
        return shown and (not self.families or unit.family in self.families)


def check_search(search: Any, budget: Any) -> None:
    """Raises UnsupportedArgument for what is no Search, and for one without a budget to search under."""
    if search is not None and not isinstance(search, Search):
        raise UnsupportedArgument(f"search={search!r} is no Search", fix="irx.Search(minutes=5)")
    if search is not None and budget is None:
        raise UnsupportedArgument("search= without a budget", fix="pass budget= and data= as well")
