"""What a layout is: from weights as the program stores them to the arrays that a kernel reads.

A layout never changes a value: it stores what the weights hold, in another order and possibly padded with zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from irx.ir.opdef import Array
from irx.runtime.arena import WEIGHTS


def room(shape: Sequence[int], dtype: Any) -> Array:
    """Zeros as kernels read them: on a 64-byte boundary, with 64 bytes behind them that may be read."""
    kind = np.dtype(dtype)
    made: Array = WEIGHTS.zeros(prod(shape) * kind.itemsize).view(kind).reshape(shape)
    return made


@dataclass(frozen=True)
class Layout:
    """Base of all layouts; the fields of a subclass are its parameters: ints and strings."""

    @property
    def parts(self) -> Mapping[str, Any]:
        """The arrays that `pack` makes, by name."""
        raise TypeError(f"{type(self).__name__} does not define parts")

    def pack(self, weights: Sequence[Array]) -> dict[str, Array]:
        """The arrays by part, each a `room`. `weights` are as stored: their types' shape and dtype, or packed bytes."""
        raise TypeError(f"{type(self).__name__} does not define pack")

    def unpack(self, arrays: Mapping[str, Array]) -> list[Array]:
        """What `pack` was given: elements, shape and dtype."""
        raise TypeError(f"{type(self).__name__} does not define unpack")


@dataclass(frozen=True)
class Plain(Layout):
    """One weight as the program stores it, in C order: part `data`."""

    @property
    def parts(self) -> Mapping[str, Any]:
        """The one array."""
        return {"data": None}

    def pack(self, weights: Sequence[Array]) -> dict[str, Array]:
        """A copy of the weight."""
        (weight,) = weights
        data = room(weight.shape, weight.dtype)
        data[...] = weight
        return {"data": data}

    def unpack(self, arrays: Mapping[str, Array]) -> list[Array]:
        """The weight itself."""
        return [arrays["data"]]
