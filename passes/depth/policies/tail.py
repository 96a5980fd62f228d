"""tail: the last blocks are left out, as if the model always exited early: the end of the stream moves up."""

from __future__ import annotations


def tail(count: int, keep: int) -> list[int]:
    """The blocks that are left out."""
    return list(range(keep, count))
