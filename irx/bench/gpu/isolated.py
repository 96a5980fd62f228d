"""Rows of the GPU bench in another process: one that crashes or hangs there costs its own figures only.

A kernel that reads where it must not leaves nothing of a process's GPU usable, and one that waits for ever never comes
back. So rows are measured one after the other in a process that sends each as a line of JSON; where it ends before
that, or takes too long, the row says so, and another process goes on behind it.

    python -m irx.bench.gpu.isolated '{"device": "h200", "rounds": 10, "turn": 0.2, "search": 60.0}' 0 1 2
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from threading import Timer
from typing import TYPE_CHECKING, Any

from irx.bench.result import Result
from irx.bench.timing import Spread, Timing

if TYPE_CHECKING:
    from irx.bench.gpu.rows import Bench

LIMIT = 480.0  # seconds of a row: Inductor tries many kernels for the first step of each model
SPENT = 75  # how a process ends whose GPU is unusable
NESTED = {"figure": Spread, "ours": Timing, "theirs": Timing}


@dataclass(frozen=True)
class Plan:
    """How rows are measured; see `irx.bench.gpu.rows.Bench`."""

    device: str
    rounds: int
    turn: float
    search: float


def results(
    plan: Plan, only: str, tell: Callable[[str], object], limit: float = LIMIT, module: str = __name__
) -> Iterator[Result]:
    """All rows with these words in their titles, as they are measured."""
    from irx.bench.gpu.rows import planned

    titles = [row for row, _ in planned()]
    left = [number for number, row in enumerate(titles) if only in row.what]
    while left:
        tell(f"measuring {', '.join(titles[number].what for number in left)}")
        with _Worker(module, plan, left, limit) as worker:
            while left and (made := worker.row()) is not None:
                del left[0]
                yield made
            if left and not worker.is_spent:
                yield titles[left.pop(0)].without("wrong", worker.reason())


class _Worker:
    """The process that measures rows."""

    def __init__(self, module: str, plan: Plan, numbers: Sequence[int], limit: float) -> None:
        self._limit, self._hung = limit, False
        command = [sys.executable, "-m", module, json.dumps(asdict(plan)), *map(str, numbers)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def row(self) -> Result | None:
        """The next one; None where the process has ended, or is ended because it takes too long."""
        assert self._process.stdout is not None
        timer = Timer(self._limit, self._end)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        return restored(json.loads(line)) if line else None

    @property
    def is_spent(self) -> bool:
        """True where it ended after a row that left its GPU unusable: the next row is not to blame."""
        return self._process.wait() == SPENT

    def reason(self) -> str:
        """Why there is no further row."""
        code = self._process.wait()
        return f"it took more than {self._limit:g} s" if self._hung else f"its process ended with {code}"

    def _end(self) -> None:
        self._hung = True
        self._process.kill()


def restored(facts: dict[str, Any]) -> Result:
    """The row of `Result.facts`."""
    nested = {name: kind(**facts[name]) for name, kind in NESTED.items() if facts[name] is not None}
    return Result(**{**facts, **nested})


def main(words: Sequence[str]) -> None:
    """Measure rows by number, and send each."""
    from irx.bench.gpu.rows import Bench, measured
    from irx.target import find_device

    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not end up among the rows
    plan = Plan(**json.loads(words[0]))
    bench = Bench(find_device(plan.device), plan.rounds, plan.turn, plan.search, lambda line: None)
    for number in map(int, words[1:]):
        print(json.dumps(measured(bench, number).facts()), file=out, flush=True)
        if not _is_usable(bench):
            sys.exit(SPENT)


def _is_usable(bench: Bench) -> bool:
    """False where a kernel has broken what this process has of the GPU."""
    try:
        bench.wait()
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
