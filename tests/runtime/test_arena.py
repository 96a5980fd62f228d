"""Memory for kernels: aligned, zero, apart from each other, readable behind its end, and given back."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import pytest
import torch

from irx.runtime.arena import CHUNK, KEPT, LARGE, LINE, PAGE, SMALL, Arena, Recycling, copied, zeros

SIZES = [0, 1, LINE, SMALL - 1, SMALL, SMALL + 1, LARGE - 1, LARGE, LARGE + PAGE // 2]


def test_every_array_is_aligned_zero_and_readable_behind_its_end() -> None:
    arena = Arena()
    for size in SIZES:
        array = arena.zeros(size)
        behind = ctypes.string_at(array.ctypes.data, size + LINE)
        assert array.shape == (size,) and array.ctypes.data % LINE == 0, size
        assert not array.any() and len(behind) == size + LINE, size


def test_arrays_do_not_overlap() -> None:
    arena = Arena()
    arrays = [arena.zeros(size) for size in SIZES * 20]
    for number, array in enumerate(arrays):
        array[:] = number % 251 + 1
    for number, array in enumerate(arrays):
        assert (array == number % 251 + 1).all(), number


def test_neighbours_lie_in_one_chunk_and_a_full_one_is_followed_by_another() -> None:
    arena, size = Arena(), LARGE - LINE
    starts = [arena.zeros(size).ctypes.data for _ in range(2)]
    assert starts[1] - starts[0] == size
    kept = [arena.zeros(size) for _ in range(CHUNK // size + 1)]
    assert max(a.ctypes.data for a in kept) - min(a.ctypes.data for a in kept) > size * len(kept) - CHUNK


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="what is resident is read from Linux's /proc")
def test_memory_is_given_back() -> None:
    arena = Arena()
    before = _resident()
    arrays = [arena.zeros(LARGE) for _ in range(8)]
    for array in arrays:
        array[:] = 1
    held = _resident() - before
    del arrays, array
    gc.collect()
    assert held >= 8 * LARGE * 0.9
    assert _resident() - before < held / 2


@pytest.mark.parametrize("size", SIZES[1:])
def test_memory_of_an_array_that_is_gone_is_the_next_ones_and_zero(size: int) -> None:
    arena = Recycling()
    first = arena.zeros(size)
    first[:] = 255
    place = first.ctypes.data
    del first
    second = arena.zeros(size)
    assert second.ctypes.data == place and not second.any()
    assert arena.zeros(size).ctypes.data != place, "second is still there"


def test_memory_that_a_tensor_views_is_not_gone() -> None:
    arena, size = Recycling(), SMALL
    view = torch.from_numpy(arena.zeros(size)).view(torch.int32).view(2, -1)[1]
    view.fill_(7)
    others = [arena.zeros(size) for _ in range(3)]
    for other in others:
        other[:] = 1
    assert (view == 7).all()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="what is resident is read from Linux's /proc")
def test_so_much_is_kept_and_no_more() -> None:
    arena, count = Recycling(), 3 * KEPT // LARGE
    before = _resident()
    arrays = [arena.zeros(LARGE) for _ in range(count)]
    for array in arrays:
        array[:] = 1
    del arrays, array
    gc.collect()
    assert KEPT * 0.5 < _resident() - before < KEPT * 1.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_tensors(dtype: torch.dtype) -> None:
    made = zeros((3, 0 if dtype is torch.uint8 else 5), dtype, torch.device("cpu"))
    assert made.dtype is dtype and made.shape[0] == 3 and made.is_contiguous() and not made.any()
    like = torch.arange(6, dtype=torch.float32).reshape(2, 3).T
    same = copied(like)
    assert torch.equal(same, like) and same.is_contiguous() and same.data_ptr() != like.data_ptr()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
