"""A worker process as its owner sees it: ask it to try a candidate, get an outcome within the limit, always.

A candidate that fails in any way ends the process it ran in, because nobody knows what it left behind; the next one
gets a new process.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from types import TracebackType
from typing import IO, Any

from irx.tuning.space import Schedule
from irx.tuning.task import Outcome, Task

STARTUP_SECONDS = 120.0  # importing a code generator on a busy machine


class _Lost(Exception):
    """The process did not answer; says why."""


class Worker:
    """Runs candidates in a process of their own, one after the other. Use as a context manager."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._imported: set[str] = set()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def attempt(self, task: Task, schedule: Schedule, limit: float) -> Outcome:
        """The outcome of one candidate, within about `limit` seconds; imports of the runner are not counted."""
        try:
            if task.runner not in self._imported:
                outcome = self._ask({"runner": task.runner}, STARTUP_SECONDS)
                if outcome.failure:
                    return outcome
                self._imported.add(task.runner)
            request = {"runner": task.runner, "args": dict(task.args), "schedule": schedule.to_json()}
            outcome = self._ask(request, limit)
        except _Lost as lost:
            outcome = Outcome(failure=str(lost))
        if outcome.failure:
            self.stop()
        return outcome

    def stop(self) -> None:
        """End the process, and whatever it started."""
        process, self._process, self._imported = self._process, None, set()
        if process is None:
            return
        if process.poll() is None:
            _kill(process)
        process.wait()
        for stream in (process.stdin, process.stdout, self._errors):
            if stream is not None:
                stream.close()

    def _ask(self, request: Mapping[str, Any], limit: float) -> Outcome:
        process = self._running()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({**request, "limit": limit}).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise _Lost(self._ending()) from None
        return self._answer(limit)

    def _answer(self, limit: float) -> Outcome:
        line, deadline = b"", time.monotonic() + limit
        assert self._process is not None and self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([pipe], [], [], max(deadline - time.monotonic(), 0.0))
            if not ready:
                raise _Lost(f"it took longer than {limit:g} s")
            piece = os.read(pipe, 65536)
            if not piece:
                raise _Lost(self._ending())
            line += piece
        return Outcome.from_json(json.loads(line))

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed by stop
            path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "irx.tuning.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # a group of its own, so that what it starts can be ended with it
            )
        return self._process

    def _ending(self) -> str:
        """How the process ended, with the last line it wrote."""
        assert self._process is not None and self._errors is not None
        status = self._process.wait()
        how = f"crashed with {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"its process {how}" + (f": {last}" if last else "")


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()  # it ended in between, which this does not mind
