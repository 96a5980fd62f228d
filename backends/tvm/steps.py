"""The steps of a graph with the rules of this backend."""

from __future__ import annotations

from collections.abc import Mapping

from irx.backends.regions import steps
from irx.backends.regions.lowered import Choices
from irx.backends.tvm.rules import RULES


class Lowering(steps.Lowering):
    """Applies the rules of CPUs, once for each body."""

    def __init__(self, choices: Choices, refused: Mapping[str, str] | None = None) -> None:
        super().__init__(RULES, choices, refused)
