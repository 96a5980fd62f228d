"""This machine's GPU as a device: the device file that its driver's name belongs to, or the nearest by architecture.

No CUDA library is loaded, because a process that started CUDA cannot fork: NVIDIA's driver is asked through its files,
and where those are hidden, as in containers, through its management library; AMD's through the kernel's files.
"""

from __future__ import annotations

import ctypes
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from irx.target.device import Device, devices

NVIDIA = Path("/proc/driver/nvidia/gpus")
AMD = Path("/sys/class/kfd/kfd/topology/nodes")
LIBRARY = "libnvidia-ml.so.1"
_NAME_BYTES = 96

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """What a driver says about a GPU; the architecture, as in device files, where it says it."""

    model: str
    architecture: str | None = None
    memory_gb: float | None = None


@cache
def host_gpu() -> Device | None:
    """This machine's first GPU, None where no device file is near to one. Said once where it is unknown."""
    for ask in (_nvidia_files, _nvidia_library, _amd_files):
        for found in ask():
            if (device := describe_gpu(found)) is not None:
                return device
    return None


def describe_gpu(found: Found) -> Device | None:
    """The device that a GPU is, else one that binaries for it are made for, with its own name and memory, else None."""
    exact = [device for device in devices().values() if found.model in device.driver_names]
    if exact:
        return exact[0]
    if found.architecture is None:
        return None
    like = _nearest(found.architecture, found.memory_gb)
    if like is None:
        logger.warning("%s (%s) is like no device IRX knows, and is not used", found.model, found.architecture)
        return None
    logger.warning("no device file describes %s (%s); it is treated as %s", found.model, found.architecture, like.name)
    memory = like.memory_gb if found.memory_gb is None else found.memory_gb
    note = f"{found.model} has no device file: all but its name and memory are those of {like.name}"
    return replace(like, title=found.model, memory_gb=memory, sources=(note, *like.sources))


def runs_on(binary: str, architecture: str) -> bool:
    """True where a binary for one architecture runs on the other: before sm_90, on later ones of its generation."""
    made, here = _capability(binary), _capability(architecture)
    if made is None or here is None or made >= (9, 0):
        return binary == architecture
    return made[0] == here[0] and made[1] <= here[1]


def _nearest(architecture: str, memory_gb: float | None) -> Device | None:
    fitting = [device for device in devices().values() if runs_on(device.architecture, architecture)]
    wanted = memory_gb or 0.0
    same = [device for device in fitting if device.architecture == architecture] or fitting
    return min(same, key=lambda device: abs(device.memory_gb - wanted), default=None)


def _capability(architecture: str) -> tuple[int, int] | None:
    parts = re.fullmatch(r"sm_(\d+)(\d)", architecture)
    return (int(parts[1]), int(parts[2])) if parts else None


# --- asking drivers -------------------------------------------------------------------------------------------------


def _nvidia_files() -> list[Found]:
    """Models alone: the files say no more. One without a device file is left to the library, which says more."""
    texts = [path.read_text() for path in sorted(NVIDIA.glob("*/information"))]
    models = [re.search(r"^Model:\s*(.*)$", text, re.MULTILINE) for text in texts]
    return [Found(model[1].strip()) for model in models if model]


def _nvidia_library(load: Callable[[str], Any] = ctypes.CDLL) -> list[Found]:
    """The first GPU that the management library of NVIDIA's driver sees; nothing where it is missing or refuses."""
    try:
        library = load(LIBRARY)
    except OSError:
        return []
    if library.nvmlInit_v2() != 0:
        return []
    try:
        return _first_of(library)
    finally:
        library.nvmlShutdown()


def _first_of(library: Any) -> list[Found]:
    handle, name = ctypes.c_void_p(), ctypes.create_string_buffer(_NAME_BYTES)
    major, minor, memory = ctypes.c_int(), ctypes.c_int(), (ctypes.c_ulonglong * 3)()
    answers = (
        library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(0), ctypes.byref(handle)) == 0
        and library.nvmlDeviceGetName(handle, name, ctypes.c_uint(_NAME_BYTES)) == 0
        and library.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor)) == 0
        and library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0
    )
    if not answers:
        return []
    return [Found(name.value.decode(), f"sm_{major.value}{minor.value}", memory[0] / 1e9)]


def _amd_files() -> list[Found]:
    """Every node of AMD's kernel driver that is a GPU; its version 90402 stands for gfx942."""
    found = []
    for node in sorted(AMD.glob("*/properties")):
        version = re.search(r"^gfx_target_version\s+(\d+)$", node.read_text(), re.MULTILINE)
        if version and (number := int(version[1])):
            major, minor, step = number // 10000, number // 100 % 100, number % 100
            found.append(Found((node.parent / "name").read_text().strip(), f"gfx{major}{minor:x}{step:x}"))
    return found
