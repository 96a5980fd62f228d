"""Worker processes: Triton runs in them only, because it compiles in one mode and interprets in the other.

A worker is started when it is first asked and ends with this process, or after a while without requests. One that
takes longer than the limit is ended, and its request fails alone.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock, Timer
from typing import BinaryIO, cast

from irx.backends.triton.framing import Message, receive, send


class Process:
    """One worker, `python -m <module>`, with changes to the environment (None: without the variable)."""

    def __init__(self, module: str, environment: Mapping[str, str | None]) -> None:
        self.owner = os.getpid()
        self._module = module
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """False where there is no process that could answer."""
        return self._process is not None and self._process.poll() is None

    def ask(
        self, message: Message, parts: Sequence[bytes | memoryview] = (), *, limit: float
    ) -> tuple[Message, list[bytes]]:
        """The answer; `{"error": reason}` where the worker failed, died, or took more than `limit` seconds."""
        answer = self._ask(message, parts, limit)
        if answer is None and self._code() == 0:  # it ended for want of requests
            answer = self._ask(message, parts, limit)
        if answer is not None:
            return answer
        code = self._code()
        return {"error": f"it took more than {limit:g} seconds" if code == -9 else f"the worker ended with {code}"}, []

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(
        self, message: Message, parts: Sequence[bytes | memoryview], limit: float
    ) -> tuple[Message, list[bytes]] | None:
        if not self.is_running:
            self._start()
        process = self._process
        assert process is not None
        timer = Timer(limit, process.kill)
        timer.daemon = True
        timer.start()
        try:
            send(cast(BinaryIO, process.stdin), message, parts)
            return receive(cast(BinaryIO, process.stdout))
        except OSError:
            return None
        finally:
            timer.cancel()

    def _start(self) -> None:
        kept = {name: value for name, value in os.environ.items() if name not in self._environment}
        environment = kept | {name: value for name, value in self._environment.items() if value is not None}
        command = [sys.executable, "-m", self._module]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def _code(self) -> int:
        assert self._process is not None
        return self._process.wait()


class Pool:
    """Workers of one kind that wait for the next request."""

    def __init__(self, module: str, environment: Mapping[str, str | None], keep: object = None) -> None:
        """`keep` lives as long as the workers: a temporary folder of theirs."""
        self._make, self._keep = (module, environment), keep
        self._idle: list[Process] = []
        self._lock = Lock()
        atexit.register(self.close)

    @contextmanager
    def process(self) -> Iterator[Process]:
        """A worker that nobody else uses: one that waits, else a new one. Those of a parent are the parent's."""
        worker = self._waiting() or Process(*self._make)
        try:
            yield worker
        finally:
            self._idle.append(worker)

    def _waiting(self) -> Process | None:
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.owner == os.getpid() and worker.is_running:
                    return worker
        return None

    def close(self) -> None:
        """End all workers that wait."""
        while self._idle:
            worker = self._idle.pop()
            if worker.owner == os.getpid():
                worker.close()
