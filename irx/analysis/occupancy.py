"""How many blocks of a kernel fit on a multiprocessor, from what a block takes and what the device's file says.

    64 registers a thread, 4 warps, 39 KiB shared on sm_80  ->  4 blocks of 32, 16 warps of 64, limited by shared memory

The rules are those of NVIDIA's occupancy calculator: registers go to warps in units, from banks that a warp cannot
straddle; shared memory goes to blocks in units, with what the driver keeps for itself. AMD's compute units divide their
registers among four banks of wavefronts in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.target import Device, Gpu

MAX_THREADS = 1024  # of a block, on every GPU there is a file for


@dataclass(frozen=True)
class Block:
    """What one block of a kernel takes: registers of a thread, bytes of shared memory, warps."""

    registers: int
    shared: int
    warps: int


@dataclass(frozen=True)
class Occupancy:
    """Blocks and warps that fit on one multiprocessor at once, the share of all warps, and what limits them."""

    blocks: int
    warps: int
    share: float
    limit: str

    def __str__(self) -> str:
        return f"{self.share:.0%} occupancy, {self.blocks} blocks, limited by {self.limit}"


def occupancy(block: Block, device: Device) -> Occupancy:
    """The occupancy of a kernel with such blocks. 0 blocks where one does not fit. Raises ValueError for a CPU."""
    gpu = _gpu(device)
    limits = {
        "blocks": gpu.max_blocks,
        "warps": gpu.max_warps // block.warps,
        "registers": _by_registers(block, gpu),
        "shared memory": _by_shared(block, gpu) if block.shared <= device.shared_memory_kib * 1024 else 0,
    }
    limit = min(limits, key=lambda name: limits[name])
    blocks = limits[limit]
    return Occupancy(blocks, blocks * block.warps, blocks * block.warps / gpu.max_warps, limit)


def over_limits(block: Block, device: Device) -> str | None:
    """Why a block can never run on the device; None where it can. Raises ValueError for a CPU."""
    gpu, most = _gpu(device), device.shared_memory_kib * 1024
    threads = block.warps * gpu.warp_threads
    if threads > MAX_THREADS:
        return f"{threads} threads a block, {device.name} has at most {MAX_THREADS}"
    if block.shared > most:
        return f"{block.shared} bytes of shared memory a block, {device.name} has at most {most}"
    if block.registers > gpu.max_registers:
        return f"{block.registers} registers a thread, {device.name} has at most {gpu.max_registers}"
    if _by_registers(block, gpu) == 0:
        taken = block.registers * threads
        return f"{taken} registers a block, {device.name} has {gpu.registers} in {gpu.register_banks} banks"
    return None


def waves(blocks: int, occupied: Occupancy, device: Device) -> float:
    """How often the device is filled with this many blocks; 0.5 leaves half of its multiprocessors' places empty."""
    return blocks / (occupied.blocks * device.cores) if occupied.blocks else float("inf")


def _gpu(device: Device) -> Gpu:
    if device.gpu is None:
        raise ValueError(f"{device.name} is no GPU")
    return device.gpu


def _by_registers(block: Block, gpu: Gpu) -> int:
    unit = gpu.register_unit
    of_warp = -(-max(block.registers, 1) * gpu.warp_threads // unit) * unit
    in_bank = gpu.registers // gpu.register_banks // of_warp
    return in_bank * gpu.register_banks // block.warps


def _by_shared(block: Block, gpu: Gpu) -> int:
    unit = gpu.shared_unit
    taken = -(-(block.shared + gpu.reserved_shared) // unit) * unit
    return gpu.shared_kib * 1024 // taken if taken else gpu.max_blocks
