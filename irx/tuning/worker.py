"""The process that tries candidates: reads requests as JSON lines from standard input, answers on standard output.

It is started as `python -m irx.tuning.worker` rather than by multiprocessing, whose children run the user's script once
more. Whatever a candidate prints goes to standard error. The process ends with its input, and an alarm ends it if a
candidate hangs while nobody is left to end it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import IO, Any

from irx.tuning.space import Schedule
from irx.tuning.task import Outcome

GRACE = 30.0  # seconds past the limit after which nobody can be waiting any more


def main() -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, answers)


def serve(requests: IO[str], answers: IO[str]) -> None:
    """One line of answer for every line of request."""
    for line in requests:
        request = json.loads(line)
        _alarm(request["limit"] + GRACE)
        outcome = attempt(request["runner"], request.get("args"), request.get("schedule"))
        _alarm(0)
        print(json.dumps(outcome.to_json()), file=answers, flush=True)


def attempt(runner: str, args: Mapping[str, Any] | None, schedule: Mapping[str, Any] | None) -> Outcome:
    """Call the runner; without a schedule only import it. What it raises is the candidate's failure."""
    try:
        module, _, name = runner.partition(":")
        function = getattr(import_module(module), name)
        if schedule is None:
            return Outcome()
        outcome = function(dict(args or {}), Schedule(schedule))
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        return Outcome(failure=f"{type(error).__name__}: {first}")
    return outcome if isinstance(outcome, Outcome) else Outcome(failure=f"the runner gave {type(outcome).__name__}")


def _alarm(seconds: float) -> None:
    if hasattr(signal, "setitimer"):  # its default action ends the process, in native code as well
        signal.setitimer(signal.ITIMER_REAL, seconds)


if __name__ == "__main__":
    main()
