"""Where the time of a call goes, step by step."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Timed:
    """One step of a graph: its op or region, the module path it comes from, and the median seconds it took.

    `kernel` names the kernel where a backend has made one; several may serve one region.
    """

    op: str
    place: str
    seconds: float
    kernel: str = ""


@dataclass(frozen=True)
class Profile:
    """The steps of one graph in the order they ran. Printing it sums them up by op."""

    steps: tuple[Timed, ...]

    @property
    def seconds(self) -> float:
        """All steps together."""
        return sum(step.seconds for step in self.steps)

    def by_op(self) -> dict[str, tuple[int, float]]:
        """How often each op ran and its seconds together, the slowest first."""
        found: dict[str, tuple[int, float]] = {}
        for step in self.steps:
            count, seconds = found.get(step.op, (0, 0.0))
            found[step.op] = (count + 1, seconds + step.seconds)
        return dict(sorted(found.items(), key=lambda item: -item[1][1]))

    def __str__(self) -> str:
        whole = self.seconds or 1.0
        rows = [
            f"{op:24} {count:6} {seconds * 1e3:10.3f} ms {100 * seconds / whole:5.1f} %"
            for op, (count, seconds) in self.by_op().items()
        ]
        return "\n".join([*rows, f"{'all':24} {len(self.steps):6} {self.seconds * 1e3:10.3f} ms"])


def merged(runs: Sequence[Sequence[Timed]]) -> Profile:
    """Several runs of the same steps as one, each step with its median."""
    steps = zip(*runs, strict=True)
    return Profile(tuple(replace(s[0], seconds=statistics.median(t.seconds for t in s)) for s in steps))
