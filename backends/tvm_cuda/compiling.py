"""From kernels to binaries through TVM and NVRTC, ahead of time, in processes of their own; the cache keeps them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from irx.backends.triton import compiling as triton
from irx.backends.triton.compiling import LIMIT, Binary
from irx.backends.triton.kernel import Kernel, Pointer
from irx.backends.triton.processes import Pool
from irx.backends.tvm_cuda import nvrtc
from irx.backends.tvm_cuda.kernel import CudaKernel
from irx.cache import CacheKey, Store
from irx.errors import MissingExtra
from irx.target import Device

STATIC_SHARED = 48 * 1024  # bytes that a kernel may have without asking for more at its launch
KERNELS_PER_WORKER = 8  # below this, starting another process takes longer than it saves: TVM takes long to load

_memory: dict[tuple[str, str], Binary] = {}  # of this process, by architecture and symbol


def missing(device: Device) -> str | None:
    """Why kernels cannot be made for a device here; None where they can."""
    if device.kind != "cuda":
        return f"it makes kernels for NVIDIA's GPUs, and {device.name} is none"
    if find_spec("tvm") is None:
        return "tvm is not installed (pip install 'irx[cuda]')"
    return triton.missing() or nvrtc.missing()


def try_kernels(
    kernels: Iterable[Kernel], device: Device, limit: float = LIMIT
) -> tuple[dict[str, Binary], dict[str, str]]:
    """Binaries by symbol, and reasons for those that cannot be made; kernels of Triton are Triton's."""
    wanted = list(kernels)
    own = {kernel.symbol: kernel for kernel in wanted if isinstance(kernel, CudaKernel)}
    made, failures = triton.try_kernels((k for k in wanted if k.symbol not in own), device, limit)
    architecture, store = device.architecture, Store()
    for symbol, kernel in own.items():
        if (architecture, symbol) not in _memory and (found := store.load(_key(kernel, architecture))) is not None:
            _memory[architecture, symbol] = _read(found)
    absent = [kernel for symbol, kernel in own.items() if (architecture, symbol) not in _memory]
    for kernel, result in zip(absent, _compiled(absent, device, limit), strict=True):
        if isinstance(result, str):
            failures[kernel.symbol] = result
            continue
        _memory[architecture, kernel.symbol] = result
        store.save(_key(kernel, architecture), _written(result))
    made |= {symbol: _memory[architecture, symbol] for symbol in own if symbol not in failures}
    return made, failures


def _compiled(kernels: Sequence[CudaKernel], device: Device, limit: float) -> list[Binary | str]:
    """Binaries compiled now, in order; for a kernel that fails the reason."""
    if not kernels:
        return []
    if (reason := missing(device)) is not None:
        raise MissingExtra("tvm and NVRTC", "cuda", needed_for=f"compiling kernels through TVM: {reason}")
    count = max(1, min(os.cpu_count() or 1, len(kernels) // KERNELS_PER_WORKER))
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(partial(_compile, device=device, limit=limit), kernels))


def _compile(kernel: CudaKernel, device: Device, limit: float) -> Binary | str:
    request = {
        "symbol": kernel.symbol,
        "source": kernel.source,
        "parameters": [[p.name, isinstance(p, Pointer)] for p in kernel.parameters],
        "architecture": device.architecture,
        "shared": STATIC_SHARED,
        "fusion": kernel.fusion,
    }
    with _workers().process() as worker:
        answer, parts = worker.ask(request, limit=limit)
    if "error" in answer:
        return str(answer["error"])
    return Binary(parts[0], 0, int(answer["warps"]), tuple(answer["grid"]), parts[1])


@cache
def _workers() -> Pool:
    return Pool("irx.backends.tvm_cuda.worker", {})


def _key(kernel: CudaKernel, architecture: str) -> CacheKey:
    source = hashlib.sha256(f"{kernel.code}\0{kernel.fusion}".encode()).hexdigest()
    packages = ("apache-tvm", "apache-tvm-ffi", nvrtc.PACKAGE, "triton")
    return CacheKey("tvm_cuda", source, architecture, versions=tuple((name, _version(name)) for name in packages))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _written(binary: Binary) -> dict[str, bytes]:
    launch = json.dumps({"warps": binary.warps, "grid": binary.grid})
    return {"binary": binary.data, "text": binary.text, "launch": launch.encode()}


def _read(parts: dict[str, bytes]) -> Binary:
    launch = json.loads(parts["launch"])
    return Binary(parts["binary"], 0, launch["warps"], tuple(launch["grid"]), parts["text"])
