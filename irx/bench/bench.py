"""`irx bench`: every claim about speed, measured again on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from irx.bench.guard import each
from irx.bench.lab import QUICK_ROUNDS, Lab
from irx.bench.result import Result
from irx.errors import UnknownOption

FAMILIES = (
    "decode",
    "prefill",
    "attention",
    "minilm",
    "batch",
    "rate",
    "compile",
    "kv",
    "tokens",
    "lossy",
    "orderings",
)
LONG = ("kv", "tokens", "lossy", "orderings")
"""Families that take hours together: measured where they are named."""


class Family(Protocol):
    """Rows that are measured together."""

    @property
    def name(self) -> str:
        """What it is called on the command line."""

    @property
    def title(self) -> str:
        """What is measured, in a few words."""

    def measure(self, lab: Lab) -> Iterator[Result]:
        """The results, row by row."""


def run(
    names: Sequence[str],
    *,
    model: str | None = None,
    target: str = "cpu",
    threads: int = 2,
    rounds: int = 10,
    quick: bool = False,
    only: str = "",
    tell: Callable[[str], object] = lambda line: None,
) -> list[Result]:
    """The results of the named families, without names of all but the long ones; `only` leaves those whose titles have
    these words, `tell` hears what is being done.

    Raises UnknownOption for a family or words that there are not, ModelNotFound without the model.
    """
    import torch

    known = [family for name in names or _usual() for family in families(name)]
    chosen = [family for family in known if only in family.title]
    if only and not chosen:
        raise UnknownOption(only, [family.title for family in known], where="--only")
    lab = Lab(_path(model), target, threads, *((QUICK_ROUNDS, 0.05) if quick else (rounds, 0.2)), tell)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return [result for family in chosen for result in _measure(family, lab)]
    finally:
        torch.set_num_threads(before)


def _usual() -> list[str]:
    return [name for name in FAMILIES if name not in LONG]


def families(name: str) -> list[Family]:
    """The families of that name. Raises UnknownOption."""
    if name not in FAMILIES:
        raise UnknownOption(name, FAMILIES)
    module: Any = import_module(f"irx.bench.rows.{name}")
    return list(module.FAMILIES) if hasattr(module, "FAMILIES") else [module.FAMILY]


def _measure(family: Family, lab: Lab) -> Iterator[Result]:
    import torch

    lab.tell(family.title)
    torch.compiler.reset()  # graphs of earlier families would be tried first, and are limited in number
    for result in each(Result(family.name, family.title, "", None, "x"), lambda: family.measure(lab)):
        lab.tell(f"  {result.line()}")  # a long run that is broken off has said what it found
        yield result


def _path(model: str | None) -> Path:
    from irx.frontends.gguf.demo import SMOLLM2

    return Path(model) if model else SMOLLM2.open().path
