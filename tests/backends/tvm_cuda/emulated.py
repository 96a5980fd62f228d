"""Runs the CUDA text that TVM writes on the CPU, threads in turns: its schedules, grids and parameters as launched.

Races do not show. Text with half floats is left out: it brings helpers that only NVIDIA's compiler reads.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from irx.backends.triton.compiling import Binary
from irx.backends.triton.driver import HIDDEN
from irx.backends.triton.kernel import Kernel, Pointer, launch_grid
from tests.backends.triton.lowered_run import run_lowered

HEADER = Path(__file__).with_name("cuda_on_cpu.h")
CALLER = """
static void (*kernel)({types}) = (void (*)({types}))(void*)&{symbol};
static uint64_t given[{count}];
static void call() {{ kernel({values}); }}
extern "C" void launch(int x, int y, int z, int threads, const uint64_t* arguments) {{
    std::memcpy(given, arguments, sizeof given);
    turns::work = call;
    for (int i = 0; i < x; i++) for (int j = 0; j < y; j++) for (int k = 0; k < z; k++) {{
        blockIdx = {{i, j, k}};
        turns::block(threads);
    }}
}}
"""


def run_kernel(binaries: Mapping[str, Binary], kernel: Kernel, arguments: Mapping[str, Any]) -> None:
    """Run a kernel, of which there is a binary with its text, on tensors of the CPU and sizes."""
    binary = binaries[kernel.symbol]
    launch = _compiled(kernel.symbol, binary.text.decode(), len(kernel.parameters) + HIDDEN)
    sizes = {name: value for name, value in arguments.items() if isinstance(value, int)}
    values = [arguments[p.name].data_ptr() if isinstance(p, Pointer) else arguments[p.name] for p in kernel.parameters]
    given = (ctypes.c_uint64 * (len(values) + HIDDEN))(*values)
    launch(*launch_grid(binary.grid, sizes), 32 * binary.warps, given)


def runner(binaries: Mapping[str, Binary]) -> Any:
    """`run_lowered` with these binaries."""
    return partial(run_lowered, run_kernel=partial(run_kernel, binaries))


def _compiled(symbol: str, text: str, count: int) -> Any:
    types, values = ", ".join(["uint64_t"] * count), ", ".join(f"given[{i}]" for i in range(count))
    caller = CALLER.format(types=types, values=values, symbol=symbol, count=count)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "cuda.h").write_text("")
        text = text.replace("__shared__ alignas(64)", "alignas(64) static")  # the order that C++ wants
        (folder / "kernel.cpp").write_text(f'#include "{HEADER}"\n{text}\n{caller}')
        command = ["g++", "-O0", "-w", "-shared", "-fPIC", "-I", name, str(folder / "kernel.cpp"), "-o", name + "/k.so"]
        subprocess.run(command, check=True)
        return ctypes.CDLL(name + "/k.so").launch
