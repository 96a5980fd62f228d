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

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import ClassVar

from irx.analysis.calibration import Calibration as Calibration
from irx.errors import CalibrationNeeded
from irx.ir.program import Program
from irx.pipeline.latency import CONTEXT
from irx.rewrite.check import Evaluate as Evaluate
from irx.rewrite.report import Fuel
from irx.rewrite.report import NearMiss as NearMiss
from irx.rewrite.report import Report as Report
from irx.rewrite.report import Site as Site
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


@dataclass
class Context:
    """What a pass may ask for: the device's facts, the oracle, the limits of the compilation, and the rewrites left."""

    device: Device
    evaluate: Evaluate
    max_batch: int = 16
    max_length: int = 2048
    context: int = CONTEXT
    """Tokens that steps are timed behind."""
    fuel: Fuel = field(default_factory=Fuel)
    layouts: frozenset[str] = frozenset({"dense", "blocked"})
    """Layouts of a cache that are read without a detour where the program will run."""
    endings: frozenset[str] = frozenset({"topk"})
    """Ops besides elementwise ones that a product's kernel may end in where the program will run."""
    calibration: Calibration | None = None
    """The user's data, for passes that look at what a model computes; None where none were given."""
    captured: Program | None = None
    """The program before the first lossy pass, which nothing may change; None as long as there was none."""

    def calibrated(self, what: str) -> Calibration:
        """The user's data. Raises CalibrationNeeded, which says that `what` needs them."""
        if self.calibration is None:
            raise CalibrationNeeded(what)
        return self.calibration

    @staticmethod
    def of(program: Program, device: Device, evaluate: Evaluate) -> Context:
        """The context of a program, with the limits that it states itself."""
        ctx = Context(device, evaluate)
        batch = program.sizes.get("B")
        ctx.max_batch = (batch.high if batch is not None else None) or ctx.max_batch
        ctx.max_length = program.meta.get("max_length") or ctx.max_length
        return ctx


@dataclass(frozen=True)
class Pass:
    """Base of all passes. Fields of the dataclass are the options, with defaults, spelled `keep-ratio=0.5` in text.

    `conflicts` names passes that may not be in the same pipeline. `paper` is the source of the method, `measure` the
    quality measure of a lossy one, `requires` names passes that must come before. One that `repairs` mends what lossy
    passes before it did: they are judged together with it.
    """

    name: ClassVar[str]
    stage: ClassVar[Stage]
    effect: ClassVar[Effect]
    conflicts: ClassVar[Sequence[str]] = ()
    requires: ClassVar[Sequence[str]] = ()
    paper: ClassVar[str] = ""
    measure: ClassVar[str] = ""
    repairs: ClassVar[bool] = False

    def run(self, program: Program, ctx: Context) -> Report:
        """Change `program` and report what was done."""
        raise TypeError(f"pass {self.name!r} does not define run")
