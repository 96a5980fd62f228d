"""Where the sizes of a call are: among its arguments, as integers or as axes of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_ONE = torch.zeros(1, dtype=torch.bool)


@dataclass(frozen=True)
class Place:
    """Argument `index` itself, or an axis of it."""

    index: int
    axis: int | None

    def read(self, args: Sequence[Any]) -> int:
        """The size in this call."""
        found: int = args[self.index] if self.axis is None else args[self.index].shape[self.axis]
        return found


def length(size: int) -> Tensor:
    """A tensor of `size` elements that has next to no memory: what a graph reads a size off."""
    return _ONE.expand(size)
