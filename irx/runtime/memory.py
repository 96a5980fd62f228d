"""What an executable takes of its device's memory, as allocated."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Memory:
    """Bytes: of weights as the kernels hold them, of the caches of living sessions, of buffers kept between calls."""

    weights: int
    cache: int
    buffers: int

    @property
    def total(self) -> int:
        """All of them together."""
        return self.weights + self.cache + self.buffers

    def __str__(self) -> str:
        parts = [("weights", self.weights), ("cache", self.cache), ("buffers", self.buffers), ("total", self.total)]
        return "\n".join(f"{name:8} {size / 1e6:12,.2f} MB" for name, size in parts)
