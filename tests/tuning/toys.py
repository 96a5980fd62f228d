"""A kernel to tune that is pure Python: its times are computed, not measured, so that tests know what must win.

`tile` decides the time, and some of its values are planted faults. The log counts every attempt.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from irx.tuning import Knob, Outcome, Schedule, Space, Task, TaskKey

WRONG, CRASHING, HANGING, RAISING, ENDING, ODD = 3, 5, 6, 7, 9, 10
RUNNER = "tests.tuning.toys:run"
LIMIT = 1e-6


def run(args: dict[str, Any], schedule: Mapping[str, Any]) -> Any:
    """Sum an array in tiles; the wrong schedule forgets the last tile, a fickle one when it is tried again."""
    tile, again = schedule["tile"], False
    if "log" in args:
        log = Path(args["log"])
        again = log.exists() and f" {schedule}\n" in log.read_text()
        with log.open("a") as file:
            file.write(f"{os.getpid()} {schedule}\n")
    _fault(tile)
    if tile == ODD:
        return "no outcome"
    x = np.arange(24, dtype=np.float64)
    parts = [x[start : start + 2].sum() for start in range(0, 24, 2)]
    total = sum(parts[:-1] if tile == WRONG or (again and tile == args.get("fickle")) else parts)
    seconds = args.get("seconds", {}).get(str(tile), 1.0) * (2.0 if schedule.get("slow") else 1.0)
    spread = args.get("spread", 0.001)
    times = tuple(seconds * (1 + spread * step) for step in (-2, -1, 0, 1, 2))
    return Outcome(times, abs(float(total) - x.sum()) / x.sum(), LIMIT)


def _fault(tile: int) -> None:
    if tile == CRASHING:
        print("printed by the candidate")
        print("the candidate's last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if tile == HANGING:
        time.sleep(3600)
    if tile == RAISING:
        raise ValueError("this tile does not divide\nsecond line")
    if tile == ENDING:
        os._exit(3)


def space(*tiles: int, default: int = 1) -> Space:
    return Space((Knob("tile", tiles or (1, 2, 4, 8), default), Knob("slow", (False, True), False)))


def task(of: Space, seconds: Mapping[int, float] | None = None, *, name: str = "toy", **more: Any) -> Task:
    args = {"seconds": {str(tile): value for tile, value in (seconds or {}).items()}, **more.pop("args", {})}
    key = TaskKey(name, "v1", "n=24", "f64")
    return Task(key, of, RUNNER, args, **more)


def schedule(tile: int, slow: bool = False) -> Schedule:
    return Schedule(tile=tile, slow=slow)
