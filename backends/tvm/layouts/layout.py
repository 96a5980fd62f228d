"""What a layout is: from weights as the program stores them to the arrays that a kernel reads.

A layout is plain data that can be written to JSON, so that a saved model packs its weights without the compiler. It
never changes a value: what it stores is what the weights hold, in another order and possibly padded with zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from irx.errors import DamagedArtifact
from irx.ir.opdef import Array


@dataclass(frozen=True)
class Layout:
    """Base of all layouts; the fields of a subclass are its parameters: ints and strings."""

    kind: ClassVar[str]

    def pack(self, weights: Sequence[Array]) -> dict[str, Array]:
        """The arrays by part. `weights` are as stored: shape and numpy dtype of their types, raw bytes where packed."""
        raise TypeError(f"layout {self.kind!r} does not define pack")

    def to_json(self) -> dict[str, Any]:
        """Plain data that `layout_from_json` reads back."""
        return {"kind": self.kind, **asdict(self)}


_KINDS: dict[str, type[Layout]] = {}


def register(layout: type[Layout]) -> type[Layout]:
    """Class decorator: makes the layout known by its kind."""
    _KINDS[layout.kind] = layout
    return layout


def layout_from_json(data: Mapping[str, Any]) -> Layout:
    """The layout that `to_json` described. Raises DamagedArtifact for an unknown one."""
    fields = dict(data)
    kind = _KINDS.get(fields.pop("kind", ""))
    if kind is None:
        raise DamagedArtifact(f"unknown weight layout {data.get('kind')!r}", fix="compile and save it again")
    return kind(**fields)


@register
@dataclass(frozen=True)
class Plain(Layout):
    """One weight as the program stores it, in C order: part `data`."""

    kind: ClassVar[str] = "plain"

    def pack(self, weights: Sequence[Array]) -> dict[str, Array]:
        (weight,) = weights
        return {"data": weight}
