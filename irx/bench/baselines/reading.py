"""How fast this machine reads memory with the threads of this run: what decoding cannot beat."""

from __future__ import annotations

import torch

from irx.bench.baselines.language import Step
from irx.errors import MissingExtra

CHUNK = 1 << 22  # elements that one call of torch reads


def reader(size: int, threads: int) -> tuple[Step, str]:
    """A step that reads a ring of `size` bytes once, and what does the reading: IRX's probe, or torch without it."""
    try:
        return _probe(size, threads)
    except MissingExtra:
        return _by_torch(size)


def _probe(size: int, threads: int) -> tuple[Step, str]:
    from irx.backends.tvm.probe import Ring

    ring, done = Ring(size, threads), torch.zeros(1)

    def step() -> torch.Tensor:
        ring()
        return done

    return step, f"a read kernel of {threads} threads"


def _by_torch(size: int) -> tuple[Step, str]:
    chunks = torch.split(torch.ones(max(1, size // 4), dtype=torch.float32), CHUNK)

    def step() -> torch.Tensor:
        return torch.stack([chunk.sum() for chunk in chunks])

    return step, "torch.sum, as TVM is not installed"
