"""One candidate, end to end: its lossy passes on the program, its quality, and the time of one step with all passes.

The program is normalized once. Quality is measured behind the last lossy pass, before fusion, which keeps the function.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

from irx.analysis.calibration import FORWARD
from irx.analysis.roofline import graph_floor
from irx.errors import IRXError
from irx.ir.excerpt import main_graph, only
from irx.ir.graph import Graph
from irx.ir.program import Program
from irx.ledger import KEPT, NO_MATCH, Ledger
from irx.pipeline.base import Context, Effect, Pass, Stage
from irx.pipeline.index import PassIndex
from irx.pipeline.latency import ROWS, Again, Latency, timed_sizes
from irx.pipeline.options import spell
from irx.pipeline.pipeline import Pipeline
from irx.pipeline.runner import run
from irx.pipeline.search.outcome import Outcome, unusable

Quality: TypeAlias = Callable[[Program, bool], Mapping[str, float]]
"""The figures of a program: by what `forward` computes, or by what decoding does."""
Clock: TypeAlias = Callable[[Program], "Latency | str"]
"""The time of one step of a program, or why it is not measured."""

logger = logging.getLogger(__name__)
PREFILL = "prefill"
DISTURBED, AGAIN = 0.3, 2  # of a time: noise beyond it is somebody else's; how often such a time is taken again
MOST_MADE = 12  # programs that are kept, each with the weights that its passes made


@dataclass
class Evaluator:
    """Runs the pipeline `base`, which names no lossy pass, with those of a candidate on `program`.

    `prompt` is how many tokens of prompts there are for every one that is written. `glances` is a quality of little
    data. What the first passes of a candidate made is kept for a while: others begin with the same, and what looks at
    data takes long.
    """

    program: Program
    base: str
    index: PassIndex
    ctx: Context
    quality: Quality
    clock: Clock
    prompt: float = 0.0
    glances: Quality | None = None
    again: Again = lambda graphs: ()
    unmeasured: list[str] = field(default_factory=list, init=False)
    """Why the time of a candidate was predicted."""
    made: dict[tuple[str, ...], _Made] = field(default_factory=dict, init=False)
    fused: dict[str, list[_Part]] = field(default_factory=dict, init=False)
    """What is timed of every candidate: small, as weights are no part of it."""

    @cached_property
    def normalized(self) -> Program:
        """The program as the first pass that may be lossy sees it."""
        passes = [one for one in self._passes("") if one.stage is Stage.NORMALIZE]
        return run(passes, (), self.program, self.ctx)[0]

    def __call__(self, text: str) -> Outcome:
        """The outcome of the lossy passes in `text`; unusable where one is refused or finds nothing to do."""
        return self._tried(text, self._measured)

    def glance(self, text: str) -> Outcome:
        """The figures that `glances` gives, and a predicted time; no figures for what only decoding shows."""
        return self._tried(text, self._glanced)

    def made_of(self, text: str) -> tuple[Program, bool]:
        """The normalized program with the lossy passes in `text`, and whether only decoding shows what they did."""
        made = self._made(self._lossy(text))
        return made.program, made.decoding

    def in_turns(self, texts: Sequence[str]) -> dict[str, Latency]:
        """The times of candidates, all taken now: those of other minutes are hard to compare. None if predicted."""
        parts = {text: self._parts(text) for text in texts}
        timed = iter(self.again([part.graph for found in parts.values() for part in found]))
        found = {text: [(part.weight, one) for part, one in zip(parts[text], timed)] for text in texts}
        return {text: _sum(times) for text, times in found.items() if times}

    def _parts(self, text: str) -> list[_Part]:
        if text not in self.fused:
            self._latency(text, self.made_of(text)[0])
        return self.fused[text]

    def _tried(self, text: str, measured: Callable[[str, _Made], Outcome]) -> Outcome:
        try:
            made = self._made(self._lossy(text))
            return unusable(made.problem) if made.problem else measured(text, made)
        except IRXError as error:
            return unusable(error.what)
        except Exception as error:  # a candidate that cannot be built or run is one less to choose from
            logger.warning("search: %s failed", text, exc_info=True)
            return unusable(f"{type(error).__name__}: {error}")

    def _lossy(self, text: str) -> list[Pass]:
        passes = [one for one in self._passes(text) if one.stage is not Stage.NORMALIZE]
        return [one for one in passes if one.effect is Effect.LOSSY]

    def _measured(self, text: str, made: _Made) -> Outcome:
        found = self._latency(text, made.program)
        if made.decoding and found.seconds >= self._unchanged.seconds:
            return unusable(f"no faster at a context of {self.ctx.context} tokens: {1e3 * found.seconds:.3g} ms a step")
        return Outcome(found.seconds, dict(self.quality(made.program, made.decoding)), noise=found.noise)

    def _glanced(self, text: str, made: _Made) -> Outcome:
        if self.glances is None or made.decoding:
            return Outcome(0.0)
        seconds = self._correction * floor_seconds(made.program, self.ctx)
        return Outcome(seconds, dict(self.glances(made.program, False)))

    @cached_property
    def _unchanged(self) -> Latency:
        return self._latency("", self.normalized)

    def _made(self, lossy: list[Pass]) -> _Made:
        """What the passes make of the normalized program, one after the other."""
        key = tuple(map(spell, lossy))
        if not key:
            return _Made(self.normalized)
        found = self.made.pop(key, None)
        if found is None:
            before = self._made(lossy[:-1])
            found = before if before.problem else self._after(before, lossy[-1])
        self.made[key] = found  # the last is the one that was asked for last
        for old in [one for one, made in self.made.items() if not made.problem][:-MOST_MADE]:
            del self.made[old]
        return found

    def _after(self, before: _Made, one: Pass) -> _Made:
        captured = self.normalized if before.program is not self.normalized else None
        changed, ledger = run([one], (), before.program, replace(self.ctx, captured=captured))
        return _Made(changed, before.decoding or _shows_in_decoding(ledger), _problem(ledger))

    def _latency(self, text: str, changed: Program) -> Latency:
        """Of a step, and of its share of a prompt."""
        parts = [(1.0, main_graph(changed))]
        if self.prompt and PREFILL in changed.graphs:
            parts.append((self.prompt / min(self.ctx.context, ROWS), only(changed, PREFILL)))
        fused = [(weight, self._fused(part)) for weight, part in parts]
        self.fused[text] = [
            _Part(weight, graph) for weight, part in fused for graph in main_graph(part).graphs.values()
        ]
        return _sum([(weight, self._timed(part)) for weight, part in fused])

    def _fused(self, changed: Program) -> Program:
        later = [one for one in self._passes("") if one.stage is not Stage.NORMALIZE]
        return run(later, (), changed, self.ctx)[0]

    def _timed(self, fused: Program) -> Latency:
        """Measured where that is possible, else predicted and corrected by what the unchanged program takes."""
        found = self.clock(fused)
        for _ in range(AGAIN):
            if isinstance(found, Latency) and found.noise > DISTURBED * found.seconds:
                again = self.clock(fused)
                found = min(found, again, key=lambda one: one.seconds) if isinstance(again, Latency) else found
        if isinstance(found, Latency):
            return found
        self.unmeasured.append(found)
        return Latency(self._correction * floor_seconds(fused, self.ctx), 0.0)

    @cached_property
    def _correction(self) -> float:
        """The measured time of the unchanged program over the predicted one; 1 where nothing is measured."""
        fused, found = self._unlossy
        return found.seconds / floor_seconds(fused, self.ctx) if isinstance(found, Latency) else 1.0

    @cached_property
    def _unlossy(self) -> tuple[Program, Latency | str]:
        """The unchanged program, fused, and its time, or why that is not measured."""
        fused = self._fused(main_graph(self.normalized))
        return fused, self.clock(fused)

    def remarks(self) -> list[str]:
        """Why times are predicted, where they are, those of an earlier search included."""
        found = self._unlossy[1]
        reasons = [*([] if isinstance(found, Latency) else [found]), *self.unmeasured]
        what = "search: times are predicted from bytes and operations, not measured"
        return [f"{what}: {reason}" for reason in dict.fromkeys(reasons)]

    def _passes(self, text: str) -> tuple[Pass, ...]:
        return joined(self.base, text, self.index).passes


@dataclass(frozen=True)
class _Made:
    """What passes made of the program, whether only decoding shows it, and what speaks against using it."""

    program: Program
    decoding: bool = False
    problem: str = ""


@dataclass(frozen=True)
class _Part:
    """A graph of a candidate, and how many of its calls there are for one step."""

    weight: float
    graph: Graph


def _sum(times: Sequence[tuple[float, Latency]]) -> Latency:
    seconds = sum(weight * one.seconds for weight, one in times)
    return Latency(seconds, sum((weight * one.noise) ** 2 for weight, one in times) ** 0.5)


def joined(base: str, text: str, index: PassIndex) -> Pipeline:
    """The passes of `text` at the end of their stages in the pipeline `base`. Raises PassConflict."""
    passes = list(Pipeline.parse(base, index).passes)
    for one in Pipeline.parse(text, index).passes:
        passes.insert(sum(other.stage <= one.stage for other in passes), one)
    return Pipeline(tuple(passes))


def floor_seconds(program: Program, ctx: Context) -> float:
    """The least time of one step on the device, by the bytes it moves and the operations it does."""
    (graph,) = program.graphs.values() if len(program.graphs) == 1 else main_graph(program).graphs.values()
    return graph_floor(graph, ctx.device, timed_sizes(graph, ctx.context)).seconds


def _problem(ledger: Ledger) -> str:
    """Why what the passes gave is no candidate of its own."""
    for row in ledger.rows:
        if row.decision == NO_MATCH:
            return f"{row.name} changes nothing: {row.reason or row.what or 'no site matches'}"
        if row.decision != KEPT:
            return f"{row.name} was {row.decision}: {row.reason}"
    return ""


def _shows_in_decoding(ledger: Ledger) -> bool:
    """True where a pass leaves `forward` as it is: only decoding shows what it did."""
    return FORWARD not in {graph for row in ledger.rows for graph in row.graphs}
