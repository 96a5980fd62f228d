"""Mask functions of transformers, recognised by what they are made of.

transformers builds a mask from small functions of (batch, head, query, key): causal, sliding window, intersections.
Those that an attribute of `irx.attention` can say are read off the functions' closures; a union, blocks or chunks are
not, and the model is then captured with its own attention.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from irx.errors import UnsupportedAttention


class UnknownMask(UnsupportedAttention):
    """A mask that attention's attributes cannot say; the adapter steps aside for this model."""


@dataclass(frozen=True)
class MaskSpec:
    """Row i sees key j where j <= i (`causal`), i - j < `window` (0: any distance), and `padding[:, j]` is true."""

    causal: bool = False
    window: int = 0
    padding: Any = None

    def narrowed(self, other: MaskSpec) -> MaskSpec:
        """What both masks allow."""
        windows = [window for window in (self.window, other.window) if window]
        return MaskSpec(self.causal or other.causal, min(windows, default=0))


def recognise(function: Callable[..., Any]) -> MaskSpec:
    """The spec of a mask function without padding. Raises UnknownMask naming the part that is none of the known."""
    name = function.__qualname__
    if name == "causal_mask_function":
        return MaskSpec(causal=True)
    # Positions always count up from 0 here, as the model makes them itself: a packed sequence cannot occur.
    if name in ("bidirectional_mask_function", "packed_sequence_mask_function.<locals>.inner_mask"):
        return MaskSpec()
    cells = inspect.getclosurevars(function).nonlocals
    if name == "sliding_window_overlay.<locals>.inner_mask":
        return MaskSpec(window=int(cells["sliding_window"]))
    if name == "remap_positions_for_packed_sequence.<locals>.inner_mask":
        return recognise(cells["mask_function"])
    if name == "and_masks.<locals>.and_mask":
        spec = MaskSpec()
        for part in cells["mask_functions"]:
            spec = spec.narrowed(recognise(part))
        return spec
    raise UnknownMask(f"attention is masked by {name}, which no attribute of irx.attention says")
