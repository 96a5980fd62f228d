"""What a matrix-product kernel is made for, and its schedule where nothing was measured.

A program computes a tile of `rows` times `columns` of the result, `depth` columns of x at a time. Tiles are taken in
stripes of `stripe` tiles of rows, whose x then is in the second-level cache. With `split` above 1 as many programs
share the sums of a tile, which keeps the device busy where there are few. A `persistent` kernel has as many programs as
the device has room for, and each of them computes tile after tile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from irx.backends.triton.templates.linear_shape import Problem, power_of_two
from irx.ir.types import item_bytes
from irx.tuning import Choice

SMALLEST = 16
"""Rows of the smallest tile that matrix instructions take; tiles of a few rows are filled up with copies."""
TYPICAL = 512
"""Rows that a kernel for any number of rows is chosen for."""
RESIDENT = 2
"""Programs of a persistent kernel on each multiprocessor."""
TILES = ((128, 128), (128, 64), (64, 64), (64, 32))
BYTES = 256
"""Bytes of a row of x in one step."""

KNOBS: Mapping[str, tuple[Choice, ...]] = {
    "rows": (16, 32, 64, 128, 256),
    "columns": (16, 32, 64, 128, 256),
    "depth": (16, 32, 64, 128, 256, 512),
    "split": (1, 2, 4, 8),
    "stripe": (1, 4, 8, 16),
    "persistent": (0, 1),
    "warps": (1, 2, 4, 8),
    "stages": (1, 2, 3, 4, 5),
}
"""The values of every knob. Adding one leaves measured schedules valid."""


@dataclass(frozen=True)
class Shape:
    """One kernel."""

    problem: Problem
    rows: int
    columns: int
    depth: int
    split: int
    stripe: int
    persistent: int
    warps: int
    stages: int

    @property
    def across(self) -> int:
        """Tiles beside each other."""
        return -(-self.problem.n // self.columns)

    @property
    def share(self) -> int:
        """Columns of x that one program multiplies: whole steps."""
        steps = -(-self.problem.k // self.depth)
        return -(-steps // self.split) * self.depth

    @property
    def is_whole(self) -> bool:
        """True where all steps are full."""
        return self.problem.k % (self.depth * self.split) == 0

    @property
    def grid(self) -> tuple[str, str]:
        """Programs: tiles, or for a persistent kernel no more than there is room for; times those that share sums."""
        tiles = f"ceil(rows, {self.rows}) * {self.across}"
        room = self.problem.device.cores * RESIDENT
        return (f"min({tiles}, {room})" if self.persistent else tiles), str(self.split)

    def __str__(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)}" for name in KNOBS)


def normalizes_itself(problem: Problem, most: int | None) -> bool:
    """True where rows are so few that the kernel normalizes them, instead of one before it.

    Where codes are unpacked field by field, x cannot be copied past the registers if it is changed on the way.
    """
    return most is not None and most <= SMALLEST and not problem.is_packed


def defaults(problem: Problem, most: int | None) -> dict[str, Choice]:
    """The schedule for up to `most` rows (None: any number) without measurements."""
    rows, columns = _tile(problem, most)
    depth = _depth(problem, rows)
    tiles = -(-(most or TYPICAL) // rows) * -(-problem.n // columns)
    split = _split(problem, tiles, depth) if most is not None else 1
    warps = 8 if rows * columns * len(problem.layouts) >= 128 * 128 else 4
    stages = _stages(problem, rows, columns, depth)
    shape = {"rows": rows, "columns": columns, "depth": depth, "split": split, "stripe": 8}
    return {**shape, "persistent": 0, "warps": warps, "stages": stages}


def _tile(problem: Problem, most: int | None) -> tuple[int, int]:
    """The largest tile of which there are enough for all multiprocessors, and whose sums fit the registers."""
    if most is not None and most <= SMALLEST:
        return SMALLEST, 32
    products = len(problem.layouts)
    room = 128 * 128 // products
    if problem.is_packed or problem.operand == "f32":
        room = 64 * 64 // (products if problem.operand == "f32" else 1)
    tiles = [(r, c) for r, c in TILES if r * c <= room and (most is None or r <= most)]
    count = most or TYPICAL
    full = (t for t in tiles if -(-count // t[0]) * -(-problem.n // t[1]) >= problem.device.cores)
    return next(full, tiles[-1])


def _depth(problem: Problem, rows: int) -> int:
    """Columns of x in a step: some hundred bytes of a row; for codes, matrix instructions' worth of every field."""
    wide = 2 if rows == SMALLEST else 1
    if problem.is_packed and problem.operand == "f32":
        return problem.chunk * 8 // problem.layout.words
    if problem.is_packed:
        return wide * problem.chunk * 16 // problem.layout.words
    return min(power_of_two(max(problem.k, 16)), int(wide * BYTES // 2 // item_bytes(problem.operand)))


def _split(problem: Problem, tiles: int, depth: int) -> int:
    """Programs for a tile: as many as fill the device, as long as each has a few steps."""
    steps = -(-problem.k // depth)
    good = [s for s in (1, 2, 4, 8) if s == 1 or steps >= 2 * s]
    return next((s for s in good if tiles * s >= 2 * problem.device.cores), good[-1])


def _stages(problem: Problem, rows: int, columns: int, depth: int) -> int:
    """Steps in flight: up to four, three for codes, in half of the shared memory."""
    columns = 0 if problem.is_packed else columns * len(problem.layouts)
    step = int((rows + columns) * depth * item_bytes(problem.operand))
    return max(2, min(3 if problem.is_packed else 4, problem.device.shared_memory_kib * 1024 // 2 // step))
