"""The error of a baseline that cannot run here."""

from __future__ import annotations

import shutil


class Absent(Exception):
    """A baseline whose library or tool is not on this machine; the message is the reason."""


def need_compiler() -> None:
    """Raises Absent where Inductor cannot run. On a CPU it needs a C++ compiler."""
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        raise Absent("no C++ compiler (g++ or clang++) on the PATH")
