"""What a matrix-vector kernel is made for, and its schedule where nothing was measured.

A program computes `columns` output columns of all rows. Its threads share out the chunks of these columns, `span` of a
row at a time, so that a warp reads neighbouring bytes; the loads of one pass are all in flight together. With `split`
above 1 as many programs share the sums of a column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from irx.backends.triton.templates.linear_shape import Problem, power_of_two
from irx.target import Device
from irx.tuning import Choice

WARP = 32
IN_FLIGHT = 4
"""Loads of weights that a thread has in flight: with full occupancy, several times what hides the memory's latency."""
MOST_WARPS = 8
LONGEST = 256
"""Chunks of a row in one pass; more are a loop."""
WAVES = 4
"""Programs for each multiprocessor that are wanted before a program takes more columns."""

KNOBS: Mapping[str, tuple[Choice, ...]] = {
    "columns": (1, 2, 4, 8, 16),
    "span": (8, 16, 32, 64, 128, 256, 512),
    "split": (1, 2, 4, 8),
    "warps": (1, 2, 4, 8),
    "stages": (1, 2, 3, 4),
}
"""The values of every knob. Adding one leaves measured schedules valid."""


@dataclass(frozen=True)
class Shape:
    """One kernel for up to `most` rows."""

    problem: Problem
    most: int
    columns: int
    span: int
    split: int
    warps: int
    stages: int

    @property
    def units(self) -> int:
        """Programs, but for those that share sums."""
        return -(-self.problem.n // self.columns)

    @property
    def share(self) -> int:
        """Chunks of a row that one program multiplies."""
        spans = -(-self.problem.chunks // self.span)
        return -(-spans // self.split) * self.span

    @property
    def folds(self) -> bool:
        """True where the norm's factor is found on the way."""
        norm = self.problem.region.norm
        return norm is not None and norm.op == "rms_norm" and self.split == 1 and not self.problem.rounds_x

    @property
    def copies(self) -> int:
        """Times that a pass reads a block of x: as often as columns are met at the same time by other threads.

        Read once, a block of fewer chunks than threads would go from thread to thread, through shared memory.
        """
        return max(1, min(self.columns, WARP * self.warps // self.span))

    @property
    def is_whole(self) -> bool:
        """True where all passes are full, so that no load of a row needs a mask."""
        return self.problem.k % (self.problem.chunk * self.span * self.split) == 0

    def __str__(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)}" for name in KNOBS)


def defaults(problem: Problem, most: int) -> dict[str, Choice]:
    """The schedule without measurements: enough programs to fill the device, enough bytes in flight in each."""
    span = min(power_of_two(problem.chunks), LONGEST)
    columns = _columns(problem, most, problem.device)
    sums = most * len(problem.layouts)
    chunks = max(1, IN_FLIGHT * _lightness(problem) // max(sums, _lightness(problem)))
    warps = min(MOST_WARPS, max(1, columns * span // (WARP * chunks)))
    return {"columns": columns, "span": span, "split": 1, "warps": warps, "stages": 1}


def _columns(problem: Problem, most: int, device: Device) -> int:
    """The most columns that leave enough programs and whose sums fit the registers of a thread."""
    fitting = [c for c in (8, 4, 2) if c * most * len(problem.layouts) <= 8 * _lightness(problem)]
    filling = (c for c in fitting if problem.n // c >= WAVES * device.cores)
    return next(filling, 1 if problem.chunks >= 4 * WARP else min(4, fitting[-1] if fitting else 1))


def _lightness(problem: Problem) -> int:
    """Sums of codes stay spread over the words of a chunk, so fewer of them fit."""
    return 1 if problem.is_packed else 2
