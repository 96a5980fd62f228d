"""What a pass is: a frozen dataclass whose fields are its options, and what it reports back.

    @dataclass(frozen=True)
    class RemoveNoops(Pass):
        '''Drop nodes that return their operand unchanged.'''

        name = "remove-noops"
        stage = Stage.NORMALIZE
        effect = Effect.EXACT

        def run(self, program: Program, ctx: Context) -> Report: ...

A pass changes the program it is given and says what it did. It does not log, time, dump or verify: instruments on the
pipeline do that. The pipeline hands each pass a copy, so a pass that fails or is refused leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any, ClassVar, TypeAlias

from irx.ir.graph import Graph, Loc
from irx.ir.opdef import Array
from irx.ir.program import Program
from irx.target import Device


class Stage(IntEnum):
    """The order of a pipeline. Passes of one stage may come in any order among themselves."""

    NORMALIZE = 0
    DEPTH = 1
    TOKENS = 2
    ATTENTION = 3
    CACHE = 4
    WEIGHTS = 5
    FUSE = 6
    LOWER = 7


class Effect(Enum):
    """What a pass may do to results.

    EXACT keeps them equal on the float64 oracle, ROUNDING keeps them within the ops' tolerances, LOSSY changes the
    function and must be asked for.
    """

    EXACT = "exact"
    ROUNDING = "rounding"
    LOSSY = "lossy"


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


Evaluate: TypeAlias = Callable[[Graph, Mapping[str, Any], Mapping[str, int]], list[Array]]
"""The oracle: `evaluate(graph, inputs by name, named sizes)` returns the outputs, floats computed in float64."""


@dataclass
class Context:
    """What a pass may ask for: the device's facts, the oracle, the limits of this compilation."""

    device: Device
    evaluate: Evaluate
    max_batch: int = 16
    max_length: int = 2048


@dataclass(frozen=True)
class Pass:
    """Base of all passes. Fields of the dataclass are the options, with defaults, spelled `keep-ratio=0.5` in text.

    `conflicts` names passes that may not be in the same pipeline. `paper` is the source of the method, `measure` the
    quality measure of a lossy one, `requires` names passes that must come before.
    """

    name: ClassVar[str]
    stage: ClassVar[Stage]
    effect: ClassVar[Effect]
    conflicts: ClassVar[Sequence[str]] = ()
    requires: ClassVar[Sequence[str]] = ()
    paper: ClassVar[str] = ""
    measure: ClassVar[str] = ""

    def run(self, program: Program, ctx: Context) -> Report:
        """Change `program` and report what was done."""
        raise TypeError(f"pass {self.name!r} does not define run")
