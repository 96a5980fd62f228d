"""This machine as a device: what the operating system tells, and nominal figures for what it does not.

Cores, features and memory are read. Peak and bandwidth are those of the shipped CPU with the widest instruction set
that this one also has, scaled to this number of cores: good enough to rank choices, never quoted as measured.
Nothing is measured here; `irx.target.measurement` does that when it is asked.
"""

from __future__ import annotations

import logging
import os
import platform
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType

from irx.target.device import Device, devices, find_device
from irx.target.gpu import host_gpu
from irx.target.permission import may_use_amx

CPUINFO = Path("/proc/cpuinfo")
# What a code generator can use; the rest of the kernel's flags say nothing about arithmetic.
USEFUL = re.compile(r"(avx|amx|fma|f16c|sse4|asimd|sve|i8mm|bf16)")

logger = logging.getLogger(__name__)


@cache
def host_device() -> Device:
    """The device that `host` means: IRX_DEVICE if set, else this machine's GPU, else its CPU."""
    if named := os.environ.get("IRX_DEVICE"):
        return find_device(named)
    return host_gpu() or host_cpu()


@cache
def host_cpu() -> Device:
    """This machine's CPU."""
    cpuinfo = CPUINFO.read_text() if CPUINFO.exists() else ""
    return describe_cpu(_permitted(cpuinfo), _cores(), _memory_gb())


def describe_cpu(cpuinfo: str, cores: int, memory_gb: float) -> Device:
    """The device that a machine with this /proc/cpuinfo, this many usable cores and this much memory is."""
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    model = re.search(r"^model name\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    features = frozenset(flag for flag in (flags[1].split() if flags else ()) if USEFUL.match(flag))
    like = _widest(features)
    share = cores / like.cores
    return replace(
        like,
        name="cpu",  # as in a target, so that its text form reads back
        title=model[1].strip() if model else platform.machine(),
        architecture=platform.machine(),
        cores=cores,
        peak_tflops=MappingProxyType({dtype: peak * share for dtype, peak in like.peak_tflops.items()}),
        bandwidth_gb_s=like.bandwidth_gb_s * share,
        memory_gb=memory_gb,
        features=features,
        aliases=(),
        sources=("cores, features, memory: the operating system", f"peak, bandwidth: {like.name}, scaled by cores"),
    )


def _permitted(cpuinfo: str) -> str:
    """Without AMX where the system does not let this process use it: its first instruction would end the process."""
    if not re.search(r"\bamx_tile\b", cpuinfo) or may_use_amx():
        return cpuinfo
    logger.warning("this processor has AMX, but the system does not let this process use it: kernels do without")
    return re.sub(r"\bamx_\w+", "", cpuinfo)


def _widest(features: frozenset[str]) -> Device:
    fitting = [device for device in devices().values() if device.kind == "cpu" and device.features <= features]
    return max(fitting, key=lambda device: device.peak_tflops["f32"] / device.cores)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gb() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
