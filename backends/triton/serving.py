"""The other end of a worker process: answer every request, end when none comes for a while."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable

from irx.backends.triton.framing import Message, receive, send

PATIENCE = 120.0
"""Seconds without a request after which a worker ends."""

Answer = Callable[[Message, list[bytes]], tuple[Message, list[bytes]]]


def serve(answer: Answer) -> None:
    """Answer until the input ends. Whatever a request raises is told to whoever asked."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a compiler prints must not end up among the answers
    while True:
        timer = threading.Timer(PATIENCE, os._exit, (0,))
        timer.daemon = True
        timer.start()
        request = receive(sys.stdin.buffer)
        timer.cancel()
        if request is None:
            return
        try:
            message, parts = answer(*request)
        except Exception as error:  # this request's failure, told to whoever asked
            message, parts = {"error": _told(error)}, []
        send(answers, message, parts)


def _told(error: Exception) -> str:
    """The error, and that which caused it, in one line each; with IRX_DEBUG where it was raised as well."""
    if os.environ.get("IRX_DEBUG", "0") not in ("", "0"):
        return "".join(traceback.format_exception(error))
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    return "; from ".join(f"{type(one).__name__}: {one}" for one in causes)
