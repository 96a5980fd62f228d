"""The time of a GPU kernel by a model, before it ever ran: what its blocks move and compute, and how many fit.

    3456 blocks of 128 threads that read 16 KiB each with 4 KiB in flight, 6 blocks on each of 108 multiprocessors
        ->  the slowest of memory, second-level cache, arithmetic and waiting, and the launch

It ranks schedules of one kernel against each other; as a prediction it is crude. Assumed, and measured on no device: a
load takes 0.7 us, a multiprocessor can draw twice its share of the memory's bandwidth, the second-level cache gives
three times that bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.analysis.occupancy import Block, occupancy
from irx.target import Device

LATENCY = 0.7e-6  # seconds from a load to its data, with other loads on the way
DRAW = 2.0  # the bandwidth one multiprocessor can use, over its share
CACHE = 3.0  # the bandwidth of the second-level cache, over that of the memory


@dataclass(frozen=True)
class Work:
    """What the blocks of one kernel do together.

    `bytes` come from memory, `cached` (those included) are what blocks read from the second-level cache. `flops` are
    done in `dtype`. A block waits for `waits` loads one after the other and has `in_flight` bytes on their way at once.
    """

    blocks: int
    bytes: float
    cached: float
    flops: float
    dtype: str
    waits: float
    in_flight: float


def kernel_seconds(work: Work, block: Block, device: Device) -> float:
    """The modelled time of one launch in a captured graph; infinite where a block does not fit the device."""
    gpu, fitting = device.gpu, occupancy(block, device)
    assert gpu is not None, f"{device.name} is no GPU"
    if fitting.blocks == 0:
        return float("inf")
    places = fitting.blocks * device.cores
    busiest = -(-work.blocks // device.cores)
    on_one = min(work.blocks / device.cores, fitting.blocks)
    rate = min(device.bandwidth, min(work.blocks, places) * work.in_flight / LATENCY)
    memory = max(work.bytes / rate, busiest * work.bytes / work.blocks / (DRAW * device.bandwidth / device.cores))
    cache = work.cached / (CACHE * device.bandwidth)
    waiting = -(-work.blocks // places) * work.waits * LATENCY
    arithmetic = busiest * (work.flops / work.blocks) / (device.peak(work.dtype) / device.cores) / _share(on_one, block)
    return gpu.launch_us * 1e-6 + max(memory, cache, arithmetic, waiting)


def _share(blocks: float, block: Block) -> float:
    """The share of a multiprocessor's arithmetic that so many blocks use: four schedulers want two warps each."""
    return min(1.0, max(blocks, 1.0) * block.warps / 8)
