"""uniform: the blocks that stay are spread evenly, the first and the last among them.

Liu et al. 2024, Unified Layer Skipping, arXiv:2404.06954: block round(i (N - 1) / (keep - 1)) for i = 0 ... keep - 1.
Independent of the input, so every row of a batch and every step runs the same blocks.
"""

from __future__ import annotations


def uniform(count: int, keep: int) -> list[int]:
    """The blocks that are left out. With one block to keep it is the first."""
    steps = max(keep - 1, 1)
    kept = {(2 * i * (count - 1) + steps) // (2 * steps) for i in range(keep)}  # rounded half up
    return [index for index in range(count) if index not in kept]
