"""What compiling takes, each time in a fresh process: seconds with a cold and with a warm cache, those of capture, and
the memory for a large model.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from irx.bench.lab import Lab
from irx.bench.result import Result
from irx.bench.timing import spread, summary

SECONDS = (
    ("compile the file, cold cache", 60, "compile", 1),
    ("compile the file, warm cache", 5, "compile", 3),
    ("capture of the nn.Module", 12, "capture", 3),
)
"""Rows in seconds: the most that is wanted, what to run, and how often."""


@dataclass(frozen=True)
class Stopwatch:
    """The family of rows in seconds, and one in multiples of a model's weights."""

    name: str = "compile"
    title: str = "seconds and memory to compile"

    def measure(self, lab: Lab) -> Iterator[Result]:
        """A cold cache first, which the warm runs then find filled."""
        with tempfile.TemporaryDirectory() as folder:
            for what, at_most, part, runs in SECONDS:
                command = ["irx.bench.fresh", part, str(lab.path), lab.target, str(lab.threads)]
                yield _row(what, at_most, "s", command, folder, runs)
            command = ["irx.bench.peak", lab.target, str(lab.threads)]
            yield _row("memory to compile a bf16 model of 1B, over its weights", 2.2, "w", command, folder, 1)


def _row(what: str, at_most: float, unit: str, command: list[str], cache: str, runs: int) -> Result:
    """One figure, the last word that a process prints, over so many runs."""
    found = Result("compile", what, "default", at_most, unit)
    figures = []
    for _ in range(runs):
        done = _run(command, cache)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            return found.without("absent", lines[-1] if lines else f"status {done.returncode}")
        figures.append(float(done.stdout.split()[-1]))
    figure = spread(figures)
    verdict = "holds" if figure.median <= at_most else "above"
    return found.measured(figure, verdict, ours=summary(figures) if unit == "s" else None)


def _run(command: list[str], cache: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "IRX_CACHE_DIR": cache}
    return subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, env=environment)


FAMILY = Stopwatch()
