"""Kernels on the CPU: Triton's interpreter runs them program by program, so that numbers are checked without a GPU.

It says nothing about races, memory order, shared memory or alignment: programs run one after the other. It lives in a
process of its own, because Triton decides when it is imported whether it interprets.

    run(kernel, {"x": x, "y": y, "rows": 3})       # CPU tensors; y is changed
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from irx.backends.triton.kernel import STORED, Kernel, Pointer, launch_grid
from irx.backends.triton.processes import Pool
from irx.errors import KernelFailed

LIMIT = 600.0
"""Seconds that one kernel may take."""

DTYPES = {
    "fp64": "float64",
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp8e4nv": "float8_e4m3fn",
    "fp8e5": "float8_e5m2",
    **{f"i{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"u{bits}": f"uint{bits}" for bits in (8, 16, 32)},
}
"""What torch calls the elements of a buffer."""

WORKERS = Pool("irx.backends.triton.interpreter_worker", {"TRITON_INTERPRET": "1"})


def run(kernel: Kernel, arguments: Mapping[str, Tensor | int]) -> None:
    """Run a kernel once: a CPU tensor for each pointer (the address of its first element), an int for each size.

    Raises KernelFailed with what the interpreter said.
    """
    values = [arguments[parameter.name] for parameter in kernel.parameters]
    sizes = {p.name: v for p, v in zip(kernel.parameters, values, strict=True) if isinstance(v, int)}
    grid = launch_grid(kernel.grid, sizes | {k: v for k, v in kernel.constants if isinstance(v, int)})
    launch(kernel, grid, values)


def launch(kernel: Kernel, grid: Sequence[int], values: Sequence[Tensor | int]) -> None:
    """Run a kernel on a grid, with arguments in order. Raises KernelFailed."""
    storages: dict[int, torch.UntypedStorage] = {}
    arguments = [_described(p, v, storages) for p, v in zip(kernel.parameters, values, strict=True)]
    buffers = [_bytes(storage) for storage in storages.values()]
    request = {
        "symbol": kernel.symbol,
        "source": kernel.source,
        "grid": list(grid),
        "constants": dict(kernel.constants),
        "arguments": arguments,
    }
    with WORKERS.process() as worker:
        answer, parts = worker.ask(request, [b.numpy().data for b in buffers], limit=LIMIT)
    if "error" in answer:
        raise KernelFailed(f"the kernel {kernel.name} fails in the interpreter: {answer['error']}")
    for index, part in zip(answer["changed"], parts, strict=True):
        buffers[index].copy_(torch.frombuffer(bytearray(part), dtype=torch.uint8))


def _described(parameter: Any, value: Tensor | int, storages: dict[int, torch.UntypedStorage]) -> dict[str, Any]:
    """An argument as the worker reads it; the storage of a tensor joins those that are sent."""
    if not isinstance(parameter, Pointer):
        return {"value": int(value), "dtype": parameter.dtype}
    assert isinstance(value, Tensor), f"{parameter.name} is a pointer"
    storage = value.untyped_storage()
    dtype = DTYPES[STORED[parameter.dtype]]
    if storage.nbytes() == 0:
        return {"buffer": None, "dtype": dtype}
    storages.setdefault(storage.data_ptr(), storage)
    offset = value.data_ptr() - storage.data_ptr()
    return {"buffer": list(storages).index(storage.data_ptr()), "offset": offset, "dtype": dtype}


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(storage)
