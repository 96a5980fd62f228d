"""Host memory for what kernels read: aligned, and in large pages where the system has them.

Decoding reads every weight once a step. In pages of 4 KiB the processor has to look up a page for every 64 lines, and
what it fetches ahead ends with the page; in pages of 2 MiB reading is up to a fifth faster. Single arrays are mostly
smaller than that, so they share chunks of whole large pages, which are given back with their last array.

The system clears a page when it is touched first, which for the cache of a short prompt takes nearly as long as the
prompt: so the memory of states that are gone is kept for the next ones.
"""

from __future__ import annotations

import math
import mmap
from collections import deque
from collections.abc import Sequence
from threading import Lock
from typing import Any, TypeAlias
from weakref import finalize

import numpy as np
import torch
from torch import Tensor

LINE = 64
PAGE = 2 << 20
"""Bytes of a large page."""
CHUNK = 32 * PAGE
LARGE = CHUNK // 8
"""Bytes from which on an array has a mapping of its own: so much of a chunk may stay unused, though not untouched."""
SMALL = 1 << 14
"""Bytes below which an array is not worth its place in a chunk, which it would keep from being given back."""

KEPT = CHUNK
"""Bytes of arrays that are gone which a process keeps at most."""

Bytes: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]


class Arena:
    """Memory handed out from chunks, one array behind the other: an arena for each use, whose arrays go together."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._chunk: Bytes = np.zeros(0, np.uint8)
        self._used = 0

    def zeros(self, size: int) -> Bytes:
        """`size` zero bytes on a 64-byte boundary, with 64 more behind them that may be read."""
        if size < SMALL:
            return _on_boundary(np.zeros(size + 2 * LINE, np.uint8), LINE)[:size]
        if size >= LARGE:
            return _mapped(size + LINE)[:size]
        with self._lock:
            if self._used + size + LINE > len(self._chunk):
                self._chunk, self._used = _mapped(CHUNK), 0
            start = self._used
            self._used += -(-size // LINE) * LINE
            return self._chunk[start : start + size]


class Recycling(Arena):
    """An arena that keeps the memory of arrays that are gone, up to KEPT bytes, for the next ones of the same size.

    An array is gone when nothing refers to the object itself any more: views must keep it, as those of tensors do.
    """

    def __init__(self) -> None:
        super().__init__()
        self._gone: deque[Bytes] = deque()  # filled whenever an array ends, in any thread and under any lock
        self._kept: dict[int, list[Bytes]] = {}  # by size
        self._bytes = 0  # of all that are kept

    def zeros(self, size: int) -> Bytes:
        """As of any arena."""
        with self._lock:
            self._settle()
            block = self._pop(size) if size in self._kept else None
        if block is None:
            block = super().zeros(size)
        else:
            block.fill(0)
        array = block[:]
        finalize(array, self._end, block).atexit = False
        return array

    def _end(self, block: Bytes) -> None:
        """Nothing refers to the array any more that was given out for a block."""
        self._gone.append(block)
        if self._lock.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self._lock.release()

    def _settle(self) -> None:
        """Keep what is gone, and give back what is too much of it: one of each size in turn."""
        while self._gone:
            block = self._gone.popleft()
            self._kept.setdefault(len(block), []).append(block)
            self._bytes += len(block)
        while self._bytes > KEPT:
            self._pop(next(iter(self._kept)))

    def _pop(self, size: int) -> Bytes:
        """The block of that size that was kept last."""
        blocks = self._kept.pop(size)
        block = blocks.pop()
        self._bytes -= size
        if blocks:
            self._kept[size] = blocks
        return block


WEIGHTS = Arena()
STATES = Recycling()


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device, arena: Arena = STATES) -> Tensor:
    """As `torch.zeros`, with 64 bytes behind that may be read; from an arena on a CPU, that of states by default."""
    size = math.prod(shape) * dtype.itemsize
    if device.type == "cpu":
        raw = torch.from_numpy(arena.zeros(size))
    else:
        raw = torch.zeros(size + LINE, dtype=torch.uint8, device=device)[:size]
    return raw.view(dtype).view(tuple(shape))


def copied(tensor: Tensor, arena: Arena = STATES) -> Tensor:
    """The same elements in memory of their own, in C order."""
    return zeros(tensor.shape, tensor.dtype, tensor.device, arena).copy_(tensor)


def _mapped(size: int) -> Bytes:
    """Zero bytes from the system that begin with a large page; what does not fill one at the end is in small ones."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return _on_boundary(np.zeros(size + LINE, np.uint8), LINE)
    memory = mmap.mmap(-1, size + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = np.frombuffer(memory, np.uint8)
    start = -whole.ctypes.data % PAGE
    if size >= PAGE:
        memory.madvise(mmap.MADV_HUGEPAGE, start, size // PAGE * PAGE)
    return whole[start : start + size]


def _on_boundary(array: Bytes, boundary: int) -> Bytes:
    return array[-array.ctypes.data % boundary :]
