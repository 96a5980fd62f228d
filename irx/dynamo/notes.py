"""What the backend says to the user, once each."""

from __future__ import annotations

import os
import warnings

from irx.errors import PassRefused

_said: set[str] = set()


def say(message: str) -> None:
    """Warn, once in a process for every message."""
    if message not in _said:
        _said.add(message)
        warnings.warn(f"irx: {message}", stacklevel=2)


def give_up(error: Exception) -> None:
    """Say why a graph runs as Dynamo gave it. Raises the error with IRX_DEBUG, and one that `strict` asks for."""
    if isinstance(error, PassRefused) or os.environ.get("IRX_DEBUG", "0") not in ("", "0"):
        raise error
    say(f"a graph could not be compiled and runs as Dynamo gave it: {type(error).__name__}: {error}")
