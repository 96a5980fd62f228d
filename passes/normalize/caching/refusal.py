"""Why a program cannot be given a cache: raised anywhere in the conversion, reported as a near miss by the pass."""

from __future__ import annotations

from irx.ir.graph import Loc, Node


class NotCacheable(Exception):
    """The conversion ends here and the program keeps only `forward`."""

    def __init__(self, reason: str, place: Node | Loc | None = None) -> None:
        self.reason = reason
        self.loc = place.loc if isinstance(place, Node) else place or Loc()
        super().__init__(reason)
