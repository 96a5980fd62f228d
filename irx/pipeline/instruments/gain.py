"""Gain: what each pass brings on this device, measured, and passes that make the model slower dropped.

A pass is judged by leaving it out: the pipeline runs without it, and the kernels of one step are timed with and
without. Lossy passes behind it are left out of both: they look at the user's data, which takes long, and what they do
depends on what came before. A step is one decode step where there is a cache, one forward otherwise. Passes that a
model needs to run at all are not judged. A lossy one, which somebody asked for, is dropped only where it brings
nothing: no faster step, no faster prompt, and no fewer bytes of weights or caches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias

from irx.analysis.footprint import footprint
from irx.analysis.roofline import node_floor
from irx.ir.excerpt import main_graph, only
from irx.ir.program import Program
from irx.ir.types import KVType
from irx.ledger import DROPPED, KEPT, Ledger
from irx.pipeline.base import Context, Effect, Pass, Stage
from irx.pipeline.instruments.base import Instrument, Kept, Verdict
from irx.pipeline.latency import ROWS, Again, Latency, timed_sizes
from irx.pipeline.oracle import reading
from irx.rewrite.report import Fuel

Measure: TypeAlias = Callable[[Program], "Latency | str"]
"""The latency of one step of a program's main graph on the device, or why it is not measured."""
Part: TypeAlias = Callable[[Program], Program]
"""A copy of a program with the graph that is timed."""

LEAST = 0.2  # of a step: a pass is dropped for losses larger than this, and than twice the noise; the sum of regions
# timed alone is no closer to the time of the step
WORTH = 0.01  # of a step or a prompt: what a lossy pass that saves no bytes has to gain
PROMPT = "prefill"
FIRST = Stage.DEPTH  # passes before it make the program what every backend can run


@dataclass
class Gain(Instrument):
    """Times a step with every pass, and without each; of lossy ones also what the cost model says."""

    measure: Measure
    again: Again = field(default=lambda graphs: (), kw_only=True)
    """Asked before a pass is dropped: what was measured in different minutes is no proof."""
    gains: dict[int, Latency] = field(default_factory=dict, init=False)
    predicted: dict[int, float] = field(default_factory=dict, init=False)
    note: str = field(default="", init=False)
    whole: float = field(default=0.0, init=False)
    unpaid: dict[int, Latency] = field(default_factory=dict, init=False)
    """What steps lost or gained by lossy passes that were dropped."""

    def judge(self, captured: Program, kept: Sequence[Kept], ctx: Context) -> Verdict | None:
        """The pass that costs most, where one costs more than the noise, or a lossy one that brings nothing."""
        self.gains, self.predicted, self.note = {}, {}, ""
        judged = [i for i, step in enumerate(kept) if step.one.stage >= FIRST and step.sites]
        if not judged:
            return None
        whole = self.measure(kept[-1].program)
        self.whole = 0.0 if isinstance(whole, str) else whole.seconds
        if isinstance(whole, str):
            self.note = f"the gain of passes was not measured: {whole}"
            return None
        for i in judged:
            self._compare(kept[i], *_sides(captured, kept, i, main_graph, ctx), ctx)
        return self._worst(captured, kept, ctx) or self._useless(captured, kept, ctx)

    def _compare(self, step: Kept, without: Program, full: Program, ctx: Context) -> None:
        """The gain of a pass from a step without it and one with it."""
        old, new = self.measure(without), self.measure(full)
        if isinstance(old, str) or isinstance(new, str):
            return
        self.gains[step.step] = _difference(old, new)
        if step.one.effect is Effect.LOSSY:
            self.predicted[step.step] = old.seconds * (modelled(full, ctx) / modelled(without, ctx) - 1)

    def end(self, passes: Sequence[Pass], ledger: Ledger) -> None:
        """Enter the gains, each in the first row of its pass."""
        ledger.notes += [self.note] if self.note else []
        entered: set[int] = set()
        for i, row in enumerate(ledger.rows):
            if row.decision == DROPPED and row.step in self.unpaid:
                lost = self.unpaid[row.step]
                ledger.rows[i] = replace(row, latency=lost.seconds, noise=lost.noise)
        for i, row in enumerate(ledger.rows):
            if row.decision == KEPT and row.step in self.gains and row.step not in entered:
                gain = self.gains[row.step]
                predicted = self.predicted.get(row.step)
                ledger.rows[i] = replace(row, latency=gain.seconds, noise=gain.noise, predicted=predicted)
                entered.add(row.step)

    def _worst(self, captured: Program, kept: Sequence[Kept], ctx: Context) -> Verdict | None:
        """The pass that costs most, where a second look says so too."""
        exact = [i for i, step in enumerate(kept) if step.step in self.gains and step.one.effect is not Effect.LOSSY]
        for i in sorted(exact, key=lambda i: self.gains[kept[i].step].seconds, reverse=True):
            if not self._loses(kept[i]):
                return None
            self._look_again(captured, kept, i, ctx)
            if self._loses(kept[i]):
                slower = self.gains[kept[i].step].seconds * 1e6
                return Verdict(kept[i].step, f"a step is {slower:.0f} us slower with it on this device", dropped=True)
        return None

    def _loses(self, step: Kept) -> bool:
        loss = self.gains[step.step]
        return loss.seconds > max(2 * loss.noise, LEAST * self.whole)

    def _look_again(self, captured: Program, kept: Sequence[Kept], i: int, ctx: Context) -> None:
        """The gain of a pass from steps that are timed in turns."""
        sides = self._in_turns(*_sides(captured, kept, i, main_graph, ctx))
        if sides:
            self.gains[kept[i].step] = _difference(*sides)

    def _useless(self, captured: Program, kept: Sequence[Kept], ctx: Context) -> Verdict | None:
        """The last lossy pass that makes nothing faster or smaller, without those that mend what others did."""
        for i in reversed(range(len(kept))):
            step = kept[i]
            if step.step not in self.gains or step.one.effect is not Effect.LOSSY or step.one.repairs:
                continue
            before = kept[i - 1].program if i else captured
            if self._pays(step) or _smaller(before, step.program, ctx.max_length):
                continue
            self._look_again(captured, kept, i, ctx)
            if self._pays(step):
                continue
            prompts = self._prompts(captured, kept, i, ctx)
            if prompts is None:
                continue
            gain = self.unpaid[step.step] = self.gains[step.step]
            reason = f"it brings nothing on this device: a step takes {gain.seconds * 1e6:+.0f} us{prompts}"
            return Verdict(step.step, f"{reason}, and weights and caches as many bytes", dropped=True)
        return None

    def _in_turns(self, *parts: Program) -> Sequence[Latency]:
        return self.again([graph for part in parts for graph in main_graph(part).graphs.values()])

    def _pays(self, step: Kept) -> bool:
        return self.gains[step.step].seconds < -WORTH * self.whole

    def _prompts(self, captured: Program, kept: Sequence[Kept], i: int, ctx: Context) -> str | None:
        """What a pass changes in the time of a prompt, as text; None where it gains there, or that is not known."""
        if PROMPT not in kept[i].program.graphs:
            return ""
        without, full = _sides(captured, kept, i, partial(only, name=PROMPT), ctx)
        old, new = self._in_turns(without, full) or (self.measure(without), self.measure(full))
        if isinstance(old, str) or isinstance(new, str) or new.seconds < (1 - WORTH) * old.seconds:
            return None
        return f", a prompt of {ROWS} tokens {(new.seconds - old.seconds) * 1e6:+.0f} us"


def _difference(old: Latency, new: Latency) -> Latency:
    return Latency(new.seconds - old.seconds, (new.noise**2 + old.noise**2) ** 0.5)


def modelled(program: Program, ctx: Context) -> float:
    """Seconds that the cost model has for a step: every region at the slower of its bytes and operations."""
    (graph,) = main_graph(program).graphs.values()
    sizes = timed_sizes(graph, ctx.context)
    return sum(node_floor(node, ctx.device, sizes).seconds for node in graph.nodes) or 1.0


def _smaller(before: Program, after: Program, tokens: int) -> bool:
    """True where fewer bytes are held, or tokens are let go, by however many."""
    return footprint(after, tokens) < footprint(before, tokens) or _evicts(after) and not _evicts(before)


def _evicts(program: Program) -> bool:
    inputs = (value.type for graph in program.graphs.values() for value in graph.inputs)
    return any(isinstance(kind, KVType) and kind.kept is not None for kind in inputs)


def _sides(captured: Program, kept: Sequence[Kept], i: int, part: Part, ctx: Context) -> tuple[Program, Program]:
    """The part of the program without a pass and with it; lossy passes behind it are left out of both."""
    later = [step for step in kept[i + 1 :] if step.one.effect is not Effect.LOSSY]
    without = _finished(part(kept[i - 1].program if i else captured), later, ctx)
    if len(later) == len(kept) - i - 1:
        return without, part(kept[-1].program)
    return without, _finished(part(kept[i].program), later, ctx)


def _finished(program: Program, later: Sequence[Kept], ctx: Context) -> Program:
    """What passes make of the part of a program that is timed."""
    unlimited = replace(reading(ctx, program), fuel=Fuel())
    for step in later:
        step.one.run(program, unlimited)
    return program
