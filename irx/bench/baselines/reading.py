"""How fast this machine reads memory with the threads of this run: what decoding cannot beat."""

from __future__ import annotations

import torch

from irx.bench.baselines.language import Step

CHUNK = 1 << 22  # elements that one call reads


def reader(size: int) -> tuple[Step, str]:
    """A step that reads a ring of `size` bytes once, and what does the reading."""
    ring = torch.ones(max(1, size // 4), dtype=torch.float32)
    chunks = ring.split(CHUNK)

    def step() -> torch.Tensor:
        return torch.stack([chunk.sum() for chunk in chunks])

    return step, "torch.sum over chunks"
