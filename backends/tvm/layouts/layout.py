"""What a layout is: from weights as the program stores them to the arrays that a kernel reads.

A layout never changes a value: it stores what the weights hold, in another order and possibly padded with zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from irx.ir.opdef import Array


@dataclass(frozen=True)
class Layout:
    """Base of all layouts; the fields of a subclass are its parameters: ints and strings."""

    kind: ClassVar[str]

    @property
    def parts(self) -> Mapping[str, Any]:
        """The arrays that `pack` makes, by name."""
        raise TypeError(f"layout {self.kind!r} does not define parts")

    def pack(self, weights: Sequence[Array]) -> dict[str, Array]:
        """The arrays by part. `weights` are as stored: shape and numpy dtype of their types, raw bytes where packed."""
        raise TypeError(f"layout {self.kind!r} does not define pack")

    def unpack(self, arrays: Mapping[str, Array]) -> list[Array]:
        """What `pack` was given: elements, shape and dtype."""
        raise TypeError(f"layout {self.kind!r} does not define unpack")


@dataclass(frozen=True)
class Plain(Layout):
    """One weight as the program stores it, in C order: part `data`."""

    kind: ClassVar[str] = "plain"

    @property
    def parts(self) -> Mapping[str, Any]:
        """The one array."""
        return {"data": None}

    def pack(self, weights: Sequence[Array]) -> dict[str, Array]:
        """The weight itself."""
        (weight,) = weights
        return {"data": weight}

    def unpack(self, arrays: Mapping[str, Array]) -> list[Array]:
        """The weight itself."""
        return [arrays["data"]]
