"""Seconds that compiling takes: cold and with a warm cache, each in a fresh process, and capture of a module apart."""

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

AGAIN = 3  # runs of what takes seconds; a cold compilation runs once


@dataclass(frozen=True)
class Stopwatch:
    """The family of rows in seconds."""

    name: str = "compile"
    title: str = "seconds to compile"

    def measure(self, lab: Lab) -> Iterator[Result]:
        """A cold cache first, which the warm runs then find filled."""
        with tempfile.TemporaryDirectory() as folder:
            yield _row("compile the file, cold cache", 60, lab, "compile", folder, 1)
            yield _row("compile the file, warm cache", 5, lab, "compile", folder, AGAIN)
            yield _row("capture of the nn.Module", 12, lab, "capture", folder, AGAIN)


def _row(what: str, at_most: float, lab: Lab, part: str, cache: str, runs: int) -> Result:
    found = Result("compile", what, "default", at_most, "s")
    seconds = []
    for _ in range(runs):
        done = _run(part, lab, cache)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            return found.without("absent", lines[-1] if lines else f"status {done.returncode}")
        seconds.append(float(done.stdout.split()[-1]))
    figure = spread(seconds)
    verdict = "holds" if figure.median <= at_most else "above"
    return found.measured(figure, verdict, ours=summary(seconds))


def _run(part: str, lab: Lab, cache: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "irx.bench.fresh", part, str(lab.path), lab.target, str(lab.threads)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "IRX_CACHE_DIR": cache})


FAMILY = Stopwatch()
