"""A process that compiles kernels: `python -m irx.backends.tvm.worker`, one request and one answer a line.

A request is JSON `{"symbol", "source", "mcpu"}`, the answer `{"object": base64}` or `{"error": text}`. TVM lives in
these processes only, so that the one that runs models never loads it. A worker that nobody asks anything ends.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

PATIENCE = 20.0
"""Seconds without a request after which a worker ends."""


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever TVM or LLVM print must not end up among the answers
    sys.modules["torch"] = None  # type: ignore[assignment]  # TVM loads it if it can, which takes longer than a kernel
    serve(sys.stdin, answers)


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer every request."""
    for line in _patiently(requests):
        answers.write(json.dumps(_answer(json.loads(line))) + "\n")
        answers.flush()


def _patiently(requests: TextIO) -> Iterator[str]:
    """The requests; the process ends where the next one does not come."""
    while True:
        with _deadline():
            line = requests.readline()
        if not line:
            return
        yield line


@contextmanager
def _deadline() -> Iterator[None]:
    timer = threading.Timer(PATIENCE, os._exit, (0,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _answer(request: dict[str, Any]) -> dict[str, str]:
    from irx.backends.tvm.codegen import compile_source

    try:
        made = compile_source(request["symbol"], request["source"], request["mcpu"])
    except Exception as error:  # whatever goes wrong is this kernel's failure, told to whoever asked
        return {"error": f"{type(error).__name__}: {error}"}
    return {"object": base64.b64encode(made).decode()}


if __name__ == "__main__":
    main()
