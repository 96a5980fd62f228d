"""Processes that compile kernels. They wait for the next request, and end when none comes: TVM takes long to load."""

from __future__ import annotations

import atexit
import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from irx.backends.tvm.kernel import Kernel

KERNELS_PER_WORKER = 4  # below this, starting another process takes longer than it saves

_idle: list[Worker] = []


class Worker:
    """One compiling process, started when it is first asked, and again where it ended for want of requests."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._process: subprocess.Popen[str] | None = None

    def compile(self, kernel: Kernel, mcpu: str) -> bytes | str:
        """The object of one kernel, or why TVM made none."""
        request = json.dumps({"symbol": kernel.symbol, "source": kernel.source, "mcpu": mcpu})
        line = self._ask(request)
        if not line and self._code() == 0:
            line = self._ask(request)
        answer = json.loads(line) if line else {"error": f"the compiler ended with code {self._code()}"}
        return str(answer["error"]) if "error" in answer else base64.b64decode(answer["object"])

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate()

    @property
    def is_running(self) -> bool:
        """False where there is no process that could answer."""
        return self._process is not None and self._process.poll() is None

    def _ask(self, request: str) -> str:
        """The answer's line, empty where the process is gone."""
        if not self.is_running:
            self._process = _start()
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
            return self._process.stdout.readline()
        except OSError:
            return ""

    def _code(self) -> int:
        assert self._process is not None
        return self._process.wait()


def compile_all(kernels: Sequence[Kernel], mcpu: str) -> list[bytes | str]:
    """Objects in order, compiled by as many processes as pay; for a kernel that fails the reason."""
    waiting = sum(worker.owner == os.getpid() and worker.is_running for worker in _idle)
    count = max(1, min(os.cpu_count() or 1, len(kernels), max(waiting, len(kernels) // KERNELS_PER_WORKER)))
    order = sorted(range(len(kernels)), key=lambda i: -len(kernels[i].source))  # the longest first: none is waited for
    with ThreadPoolExecutor(count) as pool:
        made = dict(zip(order, pool.map(_compiler(mcpu), [kernels[i] for i in order]), strict=True))
    return [made[i] for i in range(len(kernels))]


def _compiler(mcpu: str) -> Callable[[Kernel], bytes | str]:
    def compile_one(kernel: Kernel) -> bytes | str:
        with _worker() as worker:
            return worker.compile(kernel, mcpu)

    return compile_one


@contextmanager
def _worker() -> Iterator[Worker]:
    """A worker that nobody else uses: one that waits, else a new one."""
    worker = _waiting() or Worker()
    try:
        yield worker
    finally:
        _idle.append(worker)


def _waiting() -> Worker | None:
    """A worker of this process that waits; those of a parent are the parent's."""
    while True:
        try:
            worker = _idle.pop()
        except IndexError:
            return None
        if worker.owner == os.getpid() and worker.is_running:
            return worker


def _start() -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "irx.backends.tvm.worker"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@atexit.register
def close_idle() -> None:
    """End all workers that wait."""
    while (worker := _waiting()) is not None:
        worker.close()
