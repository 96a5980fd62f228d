"""From kernels to objects: TVM and LLVM compile their text, in processes of their own; the cache keeps them."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from irx.backends.tvm.compilers import compile_all
from irx.backends.tvm.kernel import Kernel
from irx.backends.tvm.script import read
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
    function = read(source)
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
    except ImportError as error:
        raise MissingExtra("apache-tvm", "cpu", needed_for="compiling kernels for a CPU") from error
    return tvm


def _compiled(kernels: Sequence[Kernel], mcpu: str) -> Mapping[str, bytes | str]:
    """Objects compiled now; for a kernel that fails the reason."""
    if not kernels:
        return {}
    if (reason := missing()) is not None:
        raise MissingExtra("apache-tvm", "cpu", needed_for=f"compiling kernels: {reason}")
    return dict(zip([kernel.symbol for kernel in kernels], compile_all(kernels, mcpu), strict=True))


def _key(kernel: Kernel, mcpu: str) -> CacheKey:
    source = hashlib.sha256(kernel.code.encode()).hexdigest()
    return CacheKey("kernel", source, mcpu, versions=(("apache-tvm", _version("apache-tvm")),))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
