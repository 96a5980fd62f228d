"""Occupancy, by hand from the table of the CUDA programming guide."""

from __future__ import annotations

import pytest

from irx.analysis.occupancy import Block, occupancy, over_limits, waves
from irx.target import find_device


@pytest.mark.parametrize(
    ("device", "block", "blocks", "limit"),
    [
        ("a100", Block(32, 0, 4), 16, "warps"),  # 64 warps of 4
        ("a100", Block(32, 0, 1), 32, "blocks"),
        ("a100", Block(64, 0, 4), 8, "registers"),  # 16384 a bank / 2048 a warp = 8 warps a bank
        ("a100", Block(255, 0, 4), 2, "registers"),  # 8160 rounds up to 8192: two warps a bank
        ("a100", Block(32, 39 * 1024, 4), 4, "shared memory"),  # 164 KiB / (39 + 1)
        ("l4", Block(32, 0, 4), 12, "warps"),
        ("l4", Block(32, 99 * 1024, 4), 1, "shared memory"),
        ("l4", Block(32, 99 * 1024 + 1, 4), 0, "shared memory"),
        ("h100", Block(32, 112 * 1024, 4), 2, "shared memory"),  # 228 KiB / (112 + 1)
        ("mi300x", Block(128, 0, 4), 4, "registers"),  # 512 registers a lane / 128 = 4 wavefronts a bank
        ("mi300x", Block(64, 40 * 1024, 4), 1, "shared memory"),
    ],
)
def test_blocks_on_a_multiprocessor(device: str, block: Block, blocks: int, limit: str) -> None:
    found = occupancy(block, find_device(device))
    assert (found.blocks, found.limit) == (blocks, limit)
    gpu = find_device(device).gpu
    assert gpu is not None
    assert found.share == blocks * block.warps / gpu.max_warps
    assert (over_limits(block, find_device(device)) is None) == (blocks > 0)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (Block(32, 0, 33), "1056 threads a block"),
        (Block(256, 0, 4), "256 registers a thread"),
        (Block(32, 163 * 1024 + 1, 4), "166913 bytes of shared memory"),
        (Block(255, 0, 16), "130560 registers a block"),
    ],
)
def test_what_can_never_run(block: Block, reason: str) -> None:
    told = over_limits(block, find_device("a100"))
    assert told is not None and told.startswith(reason)


def test_waves_count_how_often_the_device_is_filled() -> None:
    a100 = find_device("a100")
    assert waves(108 * 16 * 3, occupancy(Block(32, 0, 4), a100), a100) == 3
    assert waves(1, occupancy(Block(32, 200 * 1024, 4), a100), a100) == float("inf")


def test_a_cpu_has_no_occupancy() -> None:
    with pytest.raises(ValueError, match="cpu-avx2 is no GPU"):
        occupancy(Block(32, 0, 4), find_device("cpu-avx2"))
