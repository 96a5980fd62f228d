"""What is told about rewriting: the sites that changed, the places that almost matched, the rewrites still allowed."""

from __future__ import annotations

from dataclasses import dataclass, field

from irx.ir.graph import Loc


@dataclass(frozen=True)
class Site:
    """One rewritten place: the graph, where in the model, what was done, and the error its check measured."""

    graph: str
    loc: Loc
    what: str
    error: float | None = None


@dataclass(frozen=True)
class NearMiss:
    """A place that almost matched, with the first condition that failed."""

    graph: str
    loc: Loc
    reason: str


@dataclass
class Report:
    """What one application of a pass did. A pass that matched nothing says why in `note`."""

    sites: list[Site] = field(default_factory=list)
    near_misses: list[NearMiss] = field(default_factory=list)
    note: str = ""

    def add(self, other: Report) -> None:
        """Take over the sites and near misses of another report."""
        self.sites += other.sites
        self.near_misses += other.near_misses
        self.note = self.note or other.note

    @property
    def error(self) -> float | None:
        """The largest error any site's check measured, None when nothing was checked."""
        errors = [site.error for site in self.sites if site.error is not None]
        return max(errors, default=None)


class Fuel:
    """How many more rewrites a compilation may make, over all passes; `Fuel()` has no limit.

    Running out stops rewriting and nothing else, so bisecting the limit finds the first rewrite that breaks a model.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.spent = 0

    def take(self) -> bool:
        """Count one rewrite. False when none is left: the rewrite must not happen."""
        if self.limit is not None and self.spent >= self.limit:
            return False
        self.spent += 1
        return True
