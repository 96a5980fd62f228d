"""The part of attention that reads a prefix which all rows share: its tiles are met once for the queries of all rows.

Queries of one KV head lie beside each other, row after row, so that they are the rows of one product with a tile.
"""

from __future__ import annotations

from irx.backends.tvm.arguments import whole
from irx.backends.tvm.templates.attention_form import BLOCK, KEYS
from irx.backends.tvm.templates.attention_kernel import AttentionKernel
from irx.backends.tvm.templates.attention_tile import Places, RowTexts, Sums, scores, softmax, values

SOURCE = "prefix_"


def tiles_of(kernel: AttentionKernel) -> str:
    """The number of tiles of a prefix."""
    return whole(kernel.w, f"(prefix_length + {KEYS - 1}) // {KEYS}")


def fold_prefix(kernel: AttentionKernel, g: str, q_row: str, sums: Sums, scratch: str, tile: str, count: str) -> None:
    """One tile of head `g` of the prefix, for `count` rows of queries from `q_row` on."""
    f, w = kernel.f, kernel.w
    a = Places(
        q=whole(w, f"({q_row}) * {f.q_width}"),
        k=whole(w, f"({g}) * (prefix_capacity // {BLOCK}) * {f.steps * BLOCK}"),
        v=whole(w, f"({g}) * (prefix_capacity // {f.store.tokens}) * {f.v_elements}"),
        s=whole(w, f"({scratch}) * {KEYS}"),
        sums=sums,
        p=whole(w, f"({scratch}) * {KEYS // 2}"),
        scales=whole(w, f"({g}) * prefix_capacity"),
        first=tile,
        end="prefix_length",
        count=count,
        source=SOURCE,
    )
    row = RowTexts(low="T.int32(0)", high='T.cast(prefix_length, "int32")', head="0", bias="", position="")
    scores(w, f, a)
    with w.block(f"for r in T.serial({count}):"):
        softmax(w, f, a, row, f"{tile} + {KEYS} <= prefix_length")
    values(w, f, a)
