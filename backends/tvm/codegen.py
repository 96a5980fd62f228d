"""From kernels to objects: TVM parses the text and LLVM compiles it; objects are kept in the cache by hash."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from irx.backends.tvm.kernel import Kernel
from irx.errors import MissingExtra
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


def processor(device: Device) -> str:
    """LLVM's name for the best processor whose instructions the device has."""
    return next(name for name, needed in PROCESSORS if device.features.issuperset(needed))


@cache
def fingerprint(device: Device) -> str:
    """What an object depends on besides its kernel: processor and compiler."""
    return f"{processor(device)}/tvm-{_version('apache-tvm')}/1"


def key(kernel: Kernel, device: Device) -> str:
    """The cache key of the kernel's object."""
    return hashlib.sha256(f"{fingerprint(device)}\n{kernel.source}".encode()).hexdigest()


def compile_source(symbol: str, source: str, mcpu: str) -> bytes:
    """The object file of one kernel. Runs in this process. Raises MissingExtra without TVM."""
    tvm = load_tvm()
    function = tvm.script.from_source(source)
    target = tvm.target.Target({"kind": "llvm", "mcpu": mcpu, "num-cores": 1})
    built = tvm.compile(tvm.IRModule({symbol: function}), target=target)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.o"
        built.mod.write_to_file(str(path), "o")
        return path.read_bytes()


def compile_kernels(kernels: Sequence[Kernel], device: Device) -> dict[str, bytes]:
    """The objects of all kernels by symbol; equal kernels are compiled once."""
    return {
        k.symbol: compile_source(k.symbol, k.source, processor(device)) for k in {k.symbol: k for k in kernels}.values()
    }


@cache
def load_tvm() -> Any:
    """The tvm package. Raises MissingExtra."""
    os.environ.setdefault("TVM_NUM_THREADS", "1")  # its own pool is never used, and must not pin the main thread
    try:
        import tvm
        import tvm.script
    except ImportError as error:
        raise MissingExtra("apache-tvm", "tvm", needed_for="compiling kernels for a CPU") from error
    return tvm


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
