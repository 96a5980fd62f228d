"""The backends, one folder each, found by their `backend.py`; imported as `irx.backends`."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, cast

from irx.errors import NameClash, UnknownTarget

if TYPE_CHECKING:  # processes that compile kernels have no use for torch
    from irx.pipeline.backend import Backend

GROUP = "irx.backends"


def known_backends() -> list[str]:
    """Names of all backends, none of them imported. Raises NameClash where two have one name."""
    own = [path.parent.name for folder in __path__ for path in sorted(Path(folder).glob("*/backend.py"))]
    announced = [entry.name for entry in _announced()]
    for name in announced:
        if name in own:
            raise NameClash("backend", name, f"irx.backends.{name}", f"an entry point of {GROUP}")
    return own + announced


def find_backend(name: str) -> Backend:
    """The backend of that name, imported now. Raises UnknownTarget naming the nearest one."""
    for entry in _announced():
        if entry.name == name:
            return cast("Backend", entry.load())
    if name not in known_backends():
        raise UnknownTarget(name, known_backends())
    return cast("Backend", import_module(f"{__name__}.{name}.backend").BACKEND)


@cache
def _announced() -> tuple[EntryPoint, ...]:
    """The backends of other packages: looked for once, as reading what is installed takes a while."""
    return tuple(entry_points(group=GROUP))
