"""Losses of programs behind passes, window by window of held-out data, so that methods can be compared in pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from irx.bench.baselines.absent import Absent

if TYPE_CHECKING:
    from irx.analysis.data import Data
    from irx.analysis.quality import HeldOut
    from irx.ir.program import Program


@dataclass(frozen=True)
class Windows:
    """A model's program and its data; `judge` compares programs with it. What pipelines lose is measured once."""

    program: Program
    data: Data
    judge: HeldOut
    figure: str
    optimize: Callable[[str], tuple[Program, Any]]
    _known: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def losses(self, passes: str) -> list[float]:
        """KL of every window behind the passes, or 1 - cosine. Raises IRXError where one of them is not kept."""
        found = [figures[self.figure] for figures in self.figures(passes)]
        return found if self.figure == "kl" else [1 - value for value in found]

    def figures(self, passes: str) -> list[Mapping[str, float]]:
        """All figures of every window."""
        if passes not in self._known:
            changed, ledger = self.optimize(f"none | {passes}")
            bad = [row for row in ledger.rows if row.effect == "lossy" and row.decision != "kept"]
            if bad:
                raise Absent(f"{bad[0].name} was {bad[0].decision}: {bad[0].reason}")
            self._known[passes] = self.judge.by_batch(changed)
        return list(self._known[passes])


def windows(source: Any, data: Any, figure: str, most: int) -> Windows:
    """Up to `most` held-out windows, and as much to calibrate with, of a source's data."""
    import irx.api as api
    from irx.analysis.data import split
    from irx.analysis.quality import HeldOut

    found = split(data, source.program, source.tokenizer)
    held_out = [
        {name: array[i : i + 1] for name, array in batch.items()} for batch in found.held_out for i in rows(batch)
    ]
    part = replace(found, held_out=tuple(held_out[:most]))
    judge = HeldOut(source.program, part, api.runner(api.aim("torch")))
    return Windows(source.program, found, judge, figure, partial(_optimized, source.program, found))


def _optimized(program: Program, data: Data, pipeline: str) -> tuple[Program, Any]:
    import irx.api as api

    return api.transform(program, api.aim("torch"), pipeline, data)


def rows(batch: Any) -> range:
    """The rows of a batch."""
    return range(len(next(iter(batch.values()))))
