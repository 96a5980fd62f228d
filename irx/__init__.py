"""IRX: an optimizing compiler for transformer inference.

The public names below are imported when they are first used, so `import irx` costs nothing and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from irx.api import compile as compile
    from irx.api import load as load
    from irx.budget import Budget as Budget
    from irx.errors import IRXError as IRXError
    from irx.frontends.text import parse as parse
    from irx.passes import passes as passes
    from irx.pipeline.search.settings import Search as Search
    from irx.runtime.executable import Executable as Executable
    from irx.target import Target as Target
    from irx.target.device import devices as devices

__version__ = "0.1.0"

# Where each public name is declared. Type checkers read the imports above; a test compares the two.
_PUBLIC = {
    "Budget": "irx.budget",
    "Executable": "irx.runtime.executable",
    "IRXError": "irx.errors",
    "Search": "irx.pipeline.search.settings",
    "Target": "irx.target",
    "compile": "irx.api",
    "devices": "irx.target.device",
    "load": "irx.api",
    "parse": "irx.frontends.text",
    "passes": "irx.passes",
}

__all__ = ["Budget", "Executable", "IRXError", "Search", "Target", "compile", "devices", "load", "parse", "passes"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'irx' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
