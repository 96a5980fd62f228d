"""What one kernel takes of a multiprocessor, as its binary says, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass

from irx.analysis.occupancy import Block, Occupancy, occupancy, over_limits
from irx.target import Device


@dataclass(frozen=True)
class Usage:
    """Registers of a thread, bytes of shared memory of a block, warps of a block, bytes of stack of a thread.

    `spills` counts instructions that save registers to the stack, None where the stack is used and nobody looked.
    `parameters` are the sizes of the kernel's parameters, by which a launch can be checked; `code` is in bytes.
    """

    registers: int
    shared: int
    warps: int
    stack: int
    spills: int | None
    parameters: tuple[int, ...]
    code: int

    @property
    def block(self) -> Block:
        """What decides how many blocks fit."""
        return Block(self.registers, self.shared, self.warps)

    def refusal(self, device: Device) -> str | None:
        """Why the kernel must not be launched on the device; None where it may."""
        return over_limits(self.block, device)

    def occupancy(self, device: Device) -> Occupancy:
        """The occupancy on a GPU."""
        return occupancy(self.block, device)

    def describe(self, device: Device) -> str:
        """`64 registers, no spills, 16.0 KiB shared, 4 warps, 44% occupancy, 7 blocks, limited by registers`."""
        parts = (f"{self.registers} registers", self._spilled(), f"{self.shared / 1024:.4g} KiB shared")
        return ", ".join((*parts, f"{self.warps} warps", str(self.occupancy(device))))

    def _spilled(self) -> str:
        if self.spills == 0:
            return "no spills" if self.stack == 0 else f"no spills, {self.stack} bytes of stack"
        return f"{self.spills} spills" if self.spills else f"{self.stack} bytes of stack, spills not counted"
