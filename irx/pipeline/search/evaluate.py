"""One candidate, end to end: its lossy passes on the program, its quality, and the time of one step with all passes.

The program is normalized once. Quality is measured behind the last lossy pass, before fusion, which keeps the function.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

from irx.analysis.calibration import FORWARD
from irx.analysis.roofline import graph_floor
from irx.errors import IRXError
from irx.ir.excerpt import main_graph
from irx.ir.program import Program
from irx.ir.sizes import used_sizes
from irx.ledger import KEPT, NO_MATCH, Ledger
from irx.pipeline.base import Context, Effect, Pass, Stage
from irx.pipeline.index import PassIndex
from irx.pipeline.latency import Latency
from irx.pipeline.pipeline import Pipeline
from irx.pipeline.runner import run
from irx.pipeline.search.outcome import Outcome, unusable
from irx.target import Device

Quality: TypeAlias = Callable[[Program, bool], Mapping[str, float]]
"""The figures of a program: by what `forward` computes, or by what decoding does."""
Clock: TypeAlias = Callable[[Program], "Latency | str"]
"""The time of one step of a program, or why it is not measured."""

logger = logging.getLogger(__name__)
CAPACITY = "T"  # what the size of states that state none is called
CONTEXT = 128  # tokens that states hold, and rows of graphs without one, where time is predicted


@dataclass
class Evaluator:
    """Runs the pipeline `base`, which names no lossy pass, with those of a candidate on `program`."""

    program: Program
    base: str
    index: PassIndex
    ctx: Context
    quality: Quality
    clock: Clock
    remarks: list[str] = field(default_factory=list, init=False)

    @cached_property
    def normalized(self) -> Program:
        """The program as the first pass that may be lossy sees it."""
        passes = [one for one in self._passes("") if one.stage is Stage.NORMALIZE]
        return run(passes, (), self.program, self.ctx)[0]

    def __call__(self, text: str) -> Outcome:
        """The outcome of the lossy passes in `text`; unusable where one is refused or finds nothing to do."""
        try:
            passes = [one for one in self._passes(text) if one.stage is not Stage.NORMALIZE]
            return self._measured(passes)
        except IRXError as error:
            return unusable(error.what)
        except Exception as error:  # a candidate that cannot be built or run is one less to choose from
            logger.warning("search: %s failed", text, exc_info=True)
            return unusable(f"{type(error).__name__}: {error}")

    def _measured(self, passes: list[Pass]) -> Outcome:
        lossy = [one for one in passes if one.effect is Effect.LOSSY]
        changed, ledger = run(lossy, (), self.normalized, self.ctx)
        problem = _problem(ledger)
        if problem:
            return unusable(problem)
        seconds = self._seconds(self._fused(changed))
        return Outcome(seconds, dict(self.quality(changed, _shows_in_decoding(ledger))))

    def _fused(self, changed: Program) -> Program:
        later = [one for one in self._passes("") if one.stage is not Stage.NORMALIZE]
        return run(later, (), main_graph(changed), self.ctx)[0]

    def _seconds(self, fused: Program) -> float:
        """Measured where that is possible, else predicted and corrected by what the unchanged program takes."""
        found = self.clock(fused)
        if isinstance(found, Latency):
            return found.seconds
        remark = f"search: times are predicted from bytes and operations, not measured: {found}"
        self.remarks += [remark] if remark not in self.remarks else []
        return self._correction * floor_seconds(fused, self.ctx.device)

    @cached_property
    def _correction(self) -> float:
        """The measured time of the unchanged program over the predicted one; 1 where nothing is measured."""
        fused = self._fused(self.normalized)
        found = self.clock(fused)
        return found.seconds / floor_seconds(fused, self.ctx.device) if isinstance(found, Latency) else 1.0

    def _passes(self, text: str) -> tuple[Pass, ...]:
        return joined(self.base, text, self.index).passes


def joined(base: str, text: str, index: PassIndex) -> Pipeline:
    """The passes of `text` at the end of their stages in the pipeline `base`. Raises PassConflict."""
    passes = list(Pipeline.parse(base, index).passes)
    for one in Pipeline.parse(text, index).passes:
        passes.insert(sum(other.stage <= one.stage for other in passes), one)
    return Pipeline(tuple(passes))


def floor_seconds(program: Program, device: Device) -> float:
    """The least time of one step on the device, by the bytes it moves and the operations it does."""
    (graph,) = main_graph(program).graphs.values()
    sizes = {name: 1 if name in ("B", "R") else CONTEXT for name in (*used_sizes(graph), CAPACITY)}
    return graph_floor(graph, device, sizes).seconds


def _problem(ledger: Ledger) -> str:
    """Why what the passes gave is no candidate of its own."""
    for row in ledger.rows:
        if row.decision == NO_MATCH:
            return f"{row.name} changes nothing: {row.reason or row.what or 'no site matches'}"
        if row.decision != KEPT:
            return f"{row.name} was {row.decision}: {row.reason}"
    return ""


def _shows_in_decoding(ledger: Ledger) -> bool:
    """True where some pass leaves `forward` as it is: only decoding shows what it did."""
    by_step: dict[int, set[str]] = {}
    for row in ledger.rows:
        by_step.setdefault(row.step, set()).update(row.graphs)
    return any(FORWARD not in graphs for graphs in by_step.values())
