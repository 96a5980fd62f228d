"""What every kernel takes, from its binary alone, and the ledger's rows about it.

A kernel that exceeds what the device has is refused here, before it is written to an artifact or launched. Spills are
counted where the disassembler of triton or of a CUDA toolkit is installed, which needs no device either.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from irx.backends.triton.cubin import count_spills, read_cubin
from irx.backends.triton.hsaco import read_hsaco
from irx.backends.triton.usage import Usage
from irx.errors import KernelTooLarge
from irx.ledger import KEPT, Row
from irx.target import Device

DISASSEMBLER = "nvdisasm"


def read_usage(binary: bytes, kernel: str, device: Device, *, shared: int, warps: int) -> Usage:
    """What a compiled kernel takes; `shared` and `warps` are what it is launched with. Raises DamagedArtifact."""
    if device.kind == "hip":
        return read_hsaco(binary, kernel, shared=shared, warps=warps)
    usage = read_cubin(binary, kernel, shared=shared, warps=warps)
    tool = disassembler()
    return count_spills(usage, binary, tool) if tool is not None else usage


def require_fit(usage: Usage, kernel: str, device: Device) -> None:
    """Raises KernelTooLarge for a kernel that can never run on the device."""
    if (reason := usage.refusal(device)) is not None:
        raise KernelTooLarge(kernel, reason)


@cache
def disassembler() -> Path | None:
    """NVIDIA's disassembler, in the path or among triton's files; None without one."""
    if found := shutil.which(DISASSEMBLER):
        return Path(found)
    triton = find_spec("triton")
    if triton is None or triton.origin is None:
        return None
    own = Path(triton.origin).parent / "backends/nvidia/bin" / DISASSEMBLER
    return own if own.is_file() else None


def resource_rows(graph: str, usages: Mapping[str, Usage], device: Device) -> list[Row]:
    """The ledger's rows about a graph's kernels, those that spill first; steps are counted on by others."""
    ordered = sorted(usages.items(), key=lambda item: item[1].spills == 0)
    return [
        Row(0, "report-resources", "lower", "exact", KEPT, f"{name}: {usage.describe(device)}", (graph,), 1)
        for name, usage in ordered
    ]
