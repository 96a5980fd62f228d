"""What a user may say about a search.

irx.compile(model, budget=irx.Budget(kl=0.05), data=texts, search=irx.Search(minutes=3))
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.errors import BadOption


@dataclass(frozen=True)
class Search:
    """How long to search and how: at most about `minutes`, `population` offspring in a generation, all from `seed`.

    The limit is looked at between two candidates, so the last one may end after it. Equal seeds give equal searches, as
    far as equal programs are measured to be equally fast. Raises BadOption for values that no search can have.
    """

    minutes: float = 20.0
    seed: int = 0
    population: int = 8

    def __post_init__(self) -> None:
        if not self.minutes >= 0:
            raise BadOption(f"minutes is {self.minutes}, but must be at least 0")
        if self.population < 1:
            raise BadOption(f"population is {self.population}, but must be at least 1")
