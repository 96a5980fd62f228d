"""Bits for every matrix of its own: stated by name, or chosen by what they cost in output error on the user's data.

`mixed=["*.mlp.down_proj.weight=8", "model.layers.3.*=4"]` states them; the last pattern that fits a weight's name
decides. A mean is met by the knapsack's greedy solution: all matrices start in 4 bits, and the one whose error falls
most for the bytes it takes goes to 8, until nothing more fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from irx.ir.blocks import unpack
from irx.ir.opdef import Array
from irx.ir.packing import pack

KEPT = 16
"""Bits of a matrix that stays as it is."""

_CHOICES = (4, 5, 8, KEPT)


@dataclass(frozen=True)
class Override:
    """`pattern=bits`: weights whose names fit the pattern (`*`, `?`, `[...]`) get that many bits, 16 for none."""

    pattern: str
    bits: int

    @staticmethod
    def parse(text: str) -> Override:
        """Raises ValueError for what is no pattern and number."""
        pattern, _, bits = text.rpartition("=")
        if not pattern or bits not in map(str, _CHOICES):
            choices = ", ".join(map(str, _CHOICES))
            raise ValueError(f"mixed holds {text!r}, but must hold name=bits with bits one of {choices}")
        return Override(pattern, int(bits))


def stated_bits(name: str, overrides: Sequence[Override]) -> int | None:
    """The bits that the last override whose pattern fits states."""
    fitting = [one.bits for one in overrides if fnmatchcase(name, one.pattern)]
    return fitting[-1] if fitting else None


@dataclass(frozen=True)
class Levels:
    """A matrix of `elements` elements in its coarse and its fine format: bits an element, and error of each."""

    elements: int
    bits: tuple[float, float]
    errors: tuple[float, float]

    @property
    def worth(self) -> float:
        """The fall of the error for every bit that the fine format takes more."""
        return (self.errors[0] - self.errors[1]) / (self.elements * (self.bits[1] - self.bits[0]))


def finest(levels: Mapping[str, Levels], mean: float) -> set[str]:
    """The names of the matrices that get the fine format so that all together take at most `mean` bits an element."""
    budget = sum(one.elements * (mean - one.bits[0]) for one in levels.values())
    chosen = set()
    for name in sorted(levels, key=lambda name: (-levels[name].worth, name)):
        extra = levels[name].elements * (levels[name].bits[1] - levels[name].bits[0])
        if levels[name].worth > 0 and extra <= budget + 1e-6:
            chosen.add(name)
            budget -= extra
    return chosen


def output_error(array: Array, rms: Array, form: str) -> float:
    """The mean square of a product's error when `array` [N, K] is stored in a format, relative to its result's.

    `rms` [K] is that of the inputs, whose channels are taken to vary independently of each other.
    """
    wide = array.astype(np.float32)
    lost = np.square((unpack(pack(wide, form), form) - wide) * rms).sum(dtype=np.float64)
    total = np.square(wide * rms).sum(dtype=np.float64)
    return float(lost / total) if total > 0 else 0.0
