"""Where slot p of row b lies: slots of a head side by side, or in pages that a table finds.

A kernel asks for a `head` once, and then for the `origin` of tokens: the number that their slots are counted from in
the arrays of the state, as if all slots of the head lay beside each other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from irx.backends.regions.lowered import Capacity, StatePart
from irx.backends.triton.templates.attention_arguments import Arguments
from irx.backends.triton.writer import Writer
from irx.ir.graph import Value
from irx.ir.types import KVType


@dataclass(frozen=True)
class Tokens:
    """Texts of `slot` and `mask` of tokens, both [T] or both [M, 1].

    With a `count` they are so many side by side, from the scalar `start` on, which is a multiple of it and a slot that
    some token is in.
    """

    slot: str
    mask: str
    start: str = ""
    count: int = 0

    def column(self, w: Writer) -> Tokens:
        """The same tokens as a column [T, 1]."""
        return replace(self, slot=w.let(f"{self.slot}[:, None]", "slot"), mask=f"{self.mask}[:, None]")


class Head(Protocol):
    """A head of a row, or of a column of rows."""

    def origin(self, w: Writer, tokens: Tokens) -> str:
        """What slots of tokens are counted from: a scalar, or of their shape."""


@dataclass(frozen=True)
class Beside:
    """All slots side by side from `first` on."""

    first: str

    def origin(self, w: Writer, tokens: Tokens) -> str:
        """The first slot."""
        return self.first


@dataclass(frozen=True)
class Paged:
    """Slots in pages of `page`, of which the entries of a table from `row` on have the numbers."""

    row: str
    g: str
    heads: int
    page: int

    def origin(self, w: Writer, tokens: Tokens) -> str:
        """Where slot 0 were, if the pages before lay before this one. One look where all tokens are in one page."""
        whole = tokens.count > 0 and self.page % tokens.count == 0
        number = w.let(f"{tokens.start if whole else tokens.slot} // {self.page}", "number")
        mask = "" if whole else f", mask={tokens.mask}, other=0"
        page = w.let(f"tl.load(pages + {self.row} + {number}{mask}).to(tl.int64)", "page")
        return w.let(f"({page} * {self.heads} + {self.g} - {number}) * {self.page}", "slots")


@dataclass(frozen=True)
class Room:
    """The slots of a state that has `heads`; `page` of them to a page, where they lie in pages.

    With a `source` they are those of another state of one row, which all rows share: "prefix_".
    """

    state: Value
    heads: int
    page: int | None = None
    source: str = ""

    @staticmethod
    def of(state: Value, kv: KVType) -> Room:
        """The slots of a state of a type."""
        return Room(state, kv.heads, kv.page)

    def of_prefix(self) -> Room:
        """The slots of the prefix that rows share, which is in no pages."""
        return replace(self, source="prefix_")

    def head(self, w: Writer, arguments: Arguments, b: str, g: str) -> Head:
        """A head; b and g are scalars, or columns."""
        if self.page is not None:
            arguments.pointer("pages", "i32", StatePart(self.state, "pages"))
            columns = arguments.number("columns", Capacity(self.state, "columns"))
            return Paged(w.let(f"{b} * {columns}", "row"), g, self.heads, self.page)
        capacity = f"{self.source}capacity"
        size = arguments.number(capacity, Capacity(self.state, capacity))
        number = g if self.source else f"({b} * {self.heads} + {g})"
        return Beside(w.let(f"{number}.to(tl.int64) * {size}", "slot"))

    def pointer(self, arguments: Arguments, name: str, dtype: str) -> str:
        """An array of the state."""
        name = f"{self.source}{name}"
        return arguments.pointer(f"{name}_slots", dtype, StatePart(self.state, name))
