"""Runs what the rules write on the CPU: the text that TVM gets, compiled for LLVM instead of a GPU's threads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import ml_dtypes  # noqa: F401  numpy's bfloat16
import numpy as np
import pytest
import torch

from irx.backends.triton.kernel import Kernel, Pointer
from irx.backends.tvm_cuda.kernel import STORED, CudaKernel
from tests.backends.triton.lowered_run import run_lowered

tvm = pytest.importorskip("tvm")
pytest.importorskip("tvm.script")

_functions: dict[str, Any] = {}


def prepare(kernels: Iterable[Any]) -> None:
    """Compile kernels together, which takes a third of what they take one by one."""
    own = {k.symbol: k for k in kernels if isinstance(k, CudaKernel) and k.symbol not in _functions}
    if own:
        module = tvm.IRModule({symbol: tvm.script.from_source(k.source) for symbol, k in own.items()})
        compiled = tvm.compile(module, target={"kind": "llvm", "opt-level": 0})
        _functions.update({symbol: compiled[symbol] for symbol in own})


def run_kernel(kernel: Kernel, arguments: Mapping[str, Any]) -> None:
    """Run a kernel on tensors of the CPU and sizes."""
    prepare([kernel])
    sizes = {name: value for name, value in arguments.items() if isinstance(value, int)}
    given = [_given(kernel, parameter, arguments, sizes) for parameter in kernel.parameters]
    _functions[kernel.symbol](*given)
    for parameter, tensor in zip(kernel.parameters, given, strict=True):
        if isinstance(parameter, Pointer):
            raw = tensor.numpy().reshape(-1).view(np.uint8)
            _bytes(arguments[parameter.name])[: len(raw)] = raw


run_on_cpu = partial(run_lowered, run_kernel=run_kernel)


def shape_of(kernel: Kernel, name: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape that the kernel's text gives a pointer."""
    found = re.search(rf"^{name} = T.match_buffer\({name}_p, \((.*)\), \"", kernel.body, re.M)
    assert found is not None
    texts = re.sub(r"T\.int64\((\d+)\)", r"\1", found[1]).strip(",").split(", ")
    return tuple(sizes[text] if text in sizes else int(text) for text in texts)


def _given(kernel: Kernel, parameter: Any, arguments: Mapping[str, Any], sizes: Mapping[str, int]) -> Any:
    value = arguments[parameter.name]
    if not isinstance(parameter, Pointer):
        return value
    raw, shape, dtype = _bytes(value), shape_of(kernel, parameter.name, sizes), np.dtype(STORED[parameter.dtype])
    count = int(np.prod(shape)) * dtype.itemsize
    assert raw.nbytes >= count, f"{raw.nbytes} bytes for {shape} of {dtype}"
    return tvm.runtime.tensor(raw[:count].view(dtype).reshape(shape))


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    return tensor.reshape(-1).view(torch.uint8).numpy()
