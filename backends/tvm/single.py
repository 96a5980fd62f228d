"""One kernel on arrays: for tests, tuning and probes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from irx.backends.tvm.codegen import compile_kernels
from irx.backends.tvm.kernel import Kernel, Pointer
from irx.backends.tvm.native import Argument, Entry, Table, load
from irx.runtime.arena import WEIGHTS
from irx.target import Device


def aligned_copy(array: Any) -> Any:
    """The array's elements on a 64-byte boundary, C order, readable a little beyond their end."""
    array = np.ascontiguousarray(array)
    copy = WEIGHTS.zeros(array.nbytes)[: array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def table(kernel: Kernel, device: Device, sizes: Mapping[str, int], arrays: Mapping[str, Any]) -> Table:
    """The kernel compiled for `device` and bound to these sizes and arrays (aligned; written in place)."""
    function = load(compile_kernels([kernel], device))[kernel.symbol]
    return Table(
        [Entry(function, [_argument(p.name, sizes, arrays, isinstance(p, Pointer)) for p in kernel.parameters])]
    )


def run_kernel(
    kernel: Kernel, device: Device, sizes: Mapping[str, int], arrays: Mapping[str, Any], threads: int = 2
) -> dict[str, Any]:
    """Run once on aligned copies; gives all arrays afterwards, by name."""
    copies = {name: aligned_copy(array) for name, array in arrays.items()}
    table(kernel, device, sizes, copies).run(threads)
    return copies


def _argument(name: str, sizes: Mapping[str, int], arrays: Mapping[str, Any], is_address: bool) -> Argument:
    return Argument(arrays[name].ctypes.data if is_address else int(sizes[name]), is_address)
