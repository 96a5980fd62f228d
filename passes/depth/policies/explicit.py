"""list: exactly the blocks that the user, or a search, names.

`7` is block 7, of which `unit` goes; `7.attn`, `7.mlp` and `7.block` say themselves what goes. So one pass can leave
out attention here and an MLP there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

UnitName = Literal["block", "attn", "mlp"]
_NAMES: tuple[UnitName, ...] = ("block", "attn", "mlp")


def explicit(layers: Sequence[int | str], unit: UnitName) -> list[tuple[int, UnitName]]:
    """Blocks, counted from 0, and what goes of each. Raises ValueError for an entry that is neither."""
    return [_entry(layer, unit) for layer in layers]


def _entry(layer: int | str, unit: UnitName) -> tuple[int, UnitName]:
    number, _, what = str(layer).partition(".")
    found = next((name for name in _NAMES if name == (what or unit)), None)
    if not number.isdigit() or found is None:
        raise ValueError(f"layers has {layer!r}, which is no block: write 7, or 7.attn, 7.mlp, 7.block")
    return int(number), found
