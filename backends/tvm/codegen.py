"""From kernels to objects: TVM and LLVM compile their text, in processes of their own; the cache keeps them."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from irx.backends.tvm.kernel import Kernel
from irx.cache import CacheKey, Store
from irx.errors import KernelFailed, MissingExtra
from irx.target import Device

# The first whose features are all there; what LLVM calls the processor decides instruction choice and scheduling.
PROCESSORS = (
    ("sapphirerapids", ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni")),
    ("znver4", ("avx512_bf16", "avx512_vnni", "avx512f", "avx512bw", "avx512vl")),
    ("cascadelake", ("avx512_vnni", "avx512f", "avx512bw", "avx512vl")),
    ("skylake-avx512", ("avx512f", "avx512bw", "avx512vl")),
    ("haswell", ("avx2", "fma", "f16c")),
    ("x86-64", ()),
)
KERNELS_PER_WORKER = 4  # below this, starting another process takes longer than it saves

_memory: dict[tuple[str, str], bytes] = {}  # objects of this process, by processor and symbol


def processor(device: Device) -> str:
    """LLVM's name for the best processor whose instructions the device has."""
    return next(name for name, needed in PROCESSORS if device.features.issuperset(needed))


def missing() -> str | None:
    """Why kernels cannot be compiled or run here, None where they can."""
    absent = [name for name in ("tvm", "llvmlite") if find_spec(name) is None]
    return f"{' and '.join(absent)} not installed (pip install 'irx[cpu]')" if absent else None


def compile_kernels(kernels: Iterable[Kernel], device: Device) -> dict[str, bytes]:
    """The objects of all kernels by symbol, from memory, the cache, or compiled now.

    Raises MissingExtra without TVM, KernelFailed for a kernel that does not compile.
    """
    objects, failures = try_kernels(kernels, device)
    for symbol, reason in failures.items():
        raise KernelFailed(f"the kernel {symbol} does not compile: {reason}")
    return objects


def try_kernels(kernels: Iterable[Kernel], device: Device) -> tuple[dict[str, bytes], dict[str, str]]:
    """As `compile_kernels`, but kernels that do not compile come back as reasons by symbol."""
    mcpu = processor(device)
    wanted = {kernel.symbol: kernel for kernel in kernels}
    store = Store()
    for symbol, kernel in wanted.items():
        if (mcpu, symbol) not in _memory and (found := store.load(_key(kernel, mcpu))) is not None:
            _memory[mcpu, symbol] = found["object"]
    absent = [kernel for symbol, kernel in wanted.items() if (mcpu, symbol) not in _memory]
    made = _compiled(absent, mcpu)
    for symbol, result in made.items():
        if isinstance(result, bytes):
            _memory[mcpu, symbol] = result
            store.save(_key(wanted[symbol], mcpu), {"object": result})
    failures = {symbol: result for symbol, result in made.items() if isinstance(result, str)}
    return {symbol: _memory[mcpu, symbol] for symbol in wanted if symbol not in failures}, failures


def compile_source(symbol: str, source: str, mcpu: str) -> bytes:
    """The object file of one kernel, made in this process. Raises MissingExtra without TVM."""
    tvm = load_tvm()
    function = tvm.script.from_source(source)
    target = tvm.target.Target({"kind": "llvm", "mcpu": mcpu, "num-cores": 1})
    built = tvm.compile(tvm.IRModule({symbol: function}), target=target)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.o"
        built.mod.write_to_file(str(path), "o")
        return path.read_bytes()


@cache
def load_tvm() -> Any:
    """The tvm package. Raises MissingExtra."""
    os.environ.setdefault("TVM_NUM_THREADS", "1")  # its own pool is never used, and must not pin the main thread
    try:
        import tvm
        import tvm.script
    except ImportError as error:
        raise MissingExtra("apache-tvm", "cpu", needed_for="compiling kernels for a CPU") from error
    return tvm


class Worker:
    """One compiling process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "irx.backends.tvm.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def compile(self, kernel: Kernel, mcpu: str) -> bytes | str:
        """The object of one kernel, or why TVM made none."""
        assert self._process.stdin is not None and self._process.stdout is not None
        request = {"symbol": kernel.symbol, "source": kernel.source, "mcpu": mcpu}
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        answer = json.loads(line) if line else {"error": f"the compiler ended with code {self._process.wait()}"}
        return str(answer["error"]) if "error" in answer else base64.b64decode(answer["object"])

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def _compiled(kernels: Sequence[Kernel], mcpu: str) -> Mapping[str, bytes | str]:
    """Objects compiled now, by as many processes as pay; for a kernel that fails the reason."""
    if not kernels:
        return {}
    if (reason := missing()) is not None:
        raise MissingExtra("apache-tvm", "cpu", needed_for=f"compiling kernels: {reason}")
    count = max(1, min(os.cpu_count() or 1, len(kernels) // KERNELS_PER_WORKER))
    workers = [Worker() for _ in range(count)]
    idle: SimpleQueue[Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def compile_one(kernel: Kernel) -> bytes | str:
        worker = idle.get()
        try:
            return worker.compile(kernel, mcpu)
        finally:
            idle.put(worker)

    try:
        with ThreadPoolExecutor(count) as pool:
            return dict(zip([k.symbol for k in kernels], pool.map(compile_one, kernels), strict=True))
    finally:
        for worker in workers:
            worker.close()


def _key(kernel: Kernel, mcpu: str) -> CacheKey:
    source = hashlib.sha256(kernel.source.encode()).hexdigest()
    return CacheKey("kernel", source, mcpu, versions=(("apache-tvm", _version("apache-tvm")),))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
