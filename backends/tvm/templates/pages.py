"""States in pages, as kernels find their slots: a table says for each row which page holds which of its slots.

A page holds whole tiles of 64 keys, so that a tile looks into the table once and then reads as it does elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.backends.regions.lowered import Binding
from irx.backends.tvm.arguments import Arguments, whole
from irx.backends.tvm.writer import Writer


@dataclass(frozen=True)
class Pages:
    """The table i32 [B, columns], its columns, and how many slots a page has."""

    table: Binding
    columns: Binding
    slots: int

    def declare(self, arguments: Arguments) -> None:
        """Declare the table, once."""
        if "pages" not in arguments.bindings:
            arguments.pointer("pages", "int32", self.table)
            arguments.number("columns", self.columns)

    def first_slot(self, w: Writer, b: str, head: str, heads: int, slot: str) -> str:
        """From where `slot` of a head of row b is counted: where slot 0 were, if the pages before lay before this one.

        A multiple of a page's slots, perhaps below 0; `slot` itself never is.
        """
        number = whole(w, f"({slot}) // {self.slots}")
        page = whole(w, f'T.cast(pages[({b}) * columns + {number}], "int64")')
        return whole(w, f"(({page} * {heads} + ({head})) - {number}) * {self.slots}")
