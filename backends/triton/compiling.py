"""From kernels to binaries, ahead of time: for any device, on any machine, in processes of their own; the cache keeps
them by all that they depend on.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from irx.backends.triton.kernel import Kernel
from irx.backends.triton.processes import Pool
from irx.cache import CacheKey, Store
from irx.errors import KernelFailed, MissingExtra
from irx.target import Device

LIMIT = 600.0
"""Seconds that one kernel may compile; tiles that spill take some ten of a core, and a busy machine multiplies that."""

_memory: dict[tuple[str, str], Binary] = {}  # of this process, by architecture and symbol


@dataclass(frozen=True)
class Binary:
    """A compiled kernel, and what a launch of it must say: bytes of dynamic shared memory, warps of a block.

    Where the compiler chose the grid, it is here, written as `Kernel.grid` is; so is the `text` that it went through.
    """

    data: bytes
    shared: int
    warps: int
    grid: tuple[str, ...] = ()
    text: bytes = b""


def missing() -> str | None:
    """Why kernels cannot be compiled here, None where they can."""
    return None if find_spec("triton") is not None else "triton is not installed (pip install 'irx[gpu]')"


def target_of(device: Device) -> tuple[str, int | str, int]:
    """Triton's name for the device: kind, architecture, threads of a warp."""
    if device.architecture.startswith("gfx"):
        return "hip", device.architecture, 64
    return "cuda", int(device.architecture.removeprefix("sm_").rstrip("af")), 32


def compile_kernels(kernels: Iterable[Kernel], device: Device) -> dict[str, Binary]:
    """The binaries of all kernels by symbol. Raises MissingExtra without Triton, KernelFailed."""
    made, failures = try_kernels(kernels, device)
    for symbol, reason in failures.items():
        raise KernelFailed(f"the kernel {symbol} does not compile for {device.name}: {reason}")
    return made


def try_kernels(
    kernels: Iterable[Kernel], device: Device, limit: float = LIMIT
) -> tuple[dict[str, Binary], dict[str, str]]:
    """Binaries by symbol, from memory, the cache, or compiled now, and reasons for those that do not compile."""
    architecture, store = device.architecture, Store()
    wanted = {kernel.symbol: kernel for kernel in kernels}
    for symbol, kernel in wanted.items():
        if (architecture, symbol) not in _memory and (found := store.load(_key(kernel, architecture))) is not None:
            _memory[architecture, symbol] = _read(found)
    absent = [kernel for symbol, kernel in wanted.items() if (architecture, symbol) not in _memory]
    results = _compiled(absent, device, limit)
    failures: dict[str, str] = {}
    for kernel, result in zip(absent, results, strict=True):
        if isinstance(result, str):
            failures[kernel.symbol] = result
            continue
        _memory[architecture, kernel.symbol] = result
        store.save(_key(kernel, architecture), _written(result))
    return {symbol: _memory[architecture, symbol] for symbol in wanted if symbol not in failures}, failures


def _compiled(kernels: Sequence[Kernel], device: Device, limit: float) -> list[Binary | str]:
    """Binaries compiled now, in order; for a kernel that fails the reason."""
    if not kernels:
        return []
    if (reason := missing()) is not None:
        raise MissingExtra("triton", "gpu", needed_for=f"compiling kernels for a GPU: {reason}")
    count = max(1, min(os.cpu_count() or 1, len(kernels)))
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(lambda kernel: _compile(kernel, device, limit), kernels))


def _compile(kernel: Kernel, device: Device, limit: float) -> Binary | str:
    request: dict[str, Any] = {
        "symbol": kernel.symbol,
        "source": kernel.source,
        "signature": kernel.signature,
        "constants": dict(kernel.constants),
        "divisible": kernel.divisible,
        "options": kernel.options,
        "target": target_of(device),
    }
    with _workers().process() as worker:
        answer, parts = worker.ask(request, limit=limit)
    if "error" in answer:
        return str(answer["error"])
    return Binary(parts[0], int(answer["shared"]), int(answer["warps"]))


@cache
def _workers() -> Pool:
    """Compiling processes. Triton's own cache is of this process alone: irx.cache is the one that lasts."""
    folder = tempfile.TemporaryDirectory(prefix="irx-triton-")
    environment = {"TRITON_INTERPRET": None, "TRITON_CACHE_DIR": folder.name}
    return Pool("irx.backends.triton.compiler_worker", environment, keep=folder)


def _key(kernel: Kernel, architecture: str) -> CacheKey:
    """The code says what is computed; warps, stages and fusion, constants and alignment how."""
    how = json.dumps([kernel.options, kernel.constants, kernel.signature, kernel.divisible])
    source = hashlib.sha256(f"{kernel.code}\0{how}".encode()).hexdigest()
    return CacheKey("triton", source, architecture, versions=(("triton", triton_version()),))


def triton_version() -> str:
    """The version that is installed; empty where none is."""
    try:
        return version("triton")
    except PackageNotFoundError:
        return ""


def _written(binary: Binary) -> dict[str, bytes]:
    return {"binary": binary.data, "launch": json.dumps({"shared": binary.shared, "warps": binary.warps}).encode()}


def _read(parts: dict[str, bytes]) -> Binary:
    launch = json.loads(parts["launch"])
    return Binary(parts["binary"], launch["shared"], launch["warps"])
