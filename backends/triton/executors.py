"""Who runs kernels: the interpreter, on tensors of the CPU, or the driver of a GPU.

An executor prepares a call once for a binding of sizes; pointers that only a call of the graph knows are set later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from irx.backends.triton import interpret
from irx.backends.triton.compiling import Binary
from irx.backends.triton.driver import Function, Launch, open_driver
from irx.backends.triton.kernel import Kernel, Pointer, Size, launch_grid
from irx.backends.triton.resources import read_usage
from irx.errors import IRXError, KernelFailed
from irx.target import Device

Argument: TypeAlias = "Tensor | int"
WIDTHS = {"i32": 4, "i64": 8}
PLACE = torch.device("cuda")


class Prepared(Protocol):
    """A kernel with its arguments."""

    def set(self, number: int, value: Argument) -> None:
        """Change one argument."""

    def run(self) -> None:
        """Run it, after all that ran before."""


class Executor(Protocol):
    """Makes calls of kernels."""

    device: torch.device
    absent: IRXError | None
    """Why nothing can run here; None where it can."""

    def prepare(self, kernel: Kernel, arguments: Sequence[Argument]) -> Prepared:
        """A call of the kernel."""


class Interpreter:
    """Runs kernels on the CPU, for their numbers."""

    device = torch.device("cpu")
    absent: IRXError | None = None

    def prepare(self, kernel: Kernel, arguments: Sequence[Argument]) -> Prepared:
        """A call that the interpreter makes."""
        return _Interpreted(kernel, list(arguments))


class _Interpreted:
    def __init__(self, kernel: Kernel, arguments: list[Argument]) -> None:
        self._kernel, self._arguments = kernel, arguments

    def set(self, number: int, value: Argument) -> None:
        self._arguments[number] = value

    def run(self) -> None:
        interpret.launch(self._kernel, grid_of(self._kernel, self._arguments), self._arguments)


class Absent:
    """Stands where kernels were compiled for a GPU that is not here. Every call raises `absent`."""

    device = torch.device("cpu")

    def __init__(self, absent: IRXError) -> None:
        self.absent: IRXError | None = absent

    def prepare(self, kernel: Kernel, arguments: Sequence[Argument]) -> Prepared:
        """Raises what is missing."""
        assert self.absent is not None
        raise self.absent


class Gpu:
    """Runs binaries on the GPU of this process. Raises NoGpu, OtherArchitecture and what loading a binary raises."""

    def __init__(self, kernels: Mapping[str, Kernel], binaries: Mapping[str, Binary], device: Device) -> None:
        driver = open_driver()
        driver.require(device)
        torch.cuda.init()  # type: ignore[no-untyped-call]
        self.device = PLACE
        self.absent: IRXError | None = None
        self._functions: dict[str, Function] = {}
        self._grids = {symbol: made.grid for symbol, made in binaries.items() if made.grid}
        for symbol, kernel in kernels.items():
            made = binaries[symbol]
            usage = read_usage(made.data, symbol, device, shared=made.shared, warps=made.warps)
            self._functions[symbol] = driver.load(made.data, symbol, device, usage, widths(kernel))

    def prepare(self, kernel: Kernel, arguments: Sequence[Argument]) -> Prepared:
        """A call that the driver makes, on the stream that is current when it runs."""
        grid = self._grids.get(kernel.symbol, kernel.grid)
        return _Launched(kernel, self._functions[kernel.symbol], grid, list(arguments))


class _Launched:
    def __init__(self, kernel: Kernel, function: Function, grid: Sequence[str], arguments: list[Argument]) -> None:
        self._kernel, self._function, self._grid, self._arguments = kernel, function, grid, arguments
        self._make()

    def set(self, number: int, value: Argument) -> None:
        self._arguments[number] = value
        if isinstance(value, int):
            self._make()  # the grid may depend on it
        else:
            self._launch.set(number, value.data_ptr())

    def run(self) -> None:
        self._launch.run(torch.cuda.current_stream().cuda_stream)

    def _make(self) -> None:
        self._launch = Launch(self._function, grid_of(self._kernel, self._arguments, self._grid))
        for number, value in enumerate(self._arguments):
            self._launch.set(number, value if isinstance(value, int) else value.data_ptr())


def widths(kernel: Kernel) -> list[int]:
    """Bytes of every parameter."""
    return [8 if isinstance(parameter, Pointer) else WIDTHS[parameter.dtype] for parameter in kernel.parameters]


def grid_of(kernel: Kernel, arguments: Sequence[Argument], grid: Sequence[str] | None = None) -> tuple[int, int, int]:
    """The grid (by default the kernel's) for these arguments. Raises KernelFailed for a size that its parameter cannot
    hold."""
    values = {name: value for name, value in kernel.constants if isinstance(value, int)}
    for parameter, value in zip(kernel.parameters, arguments, strict=True):
        if isinstance(parameter, Size) and isinstance(value, int):
            values[parameter.name] = _checked(kernel, parameter, value)
    return launch_grid(kernel.grid if grid is None else grid, values)


def _checked(kernel: Kernel, size: Size, value: int) -> int:
    if not 0 <= value < 1 << (8 * WIDTHS[size.dtype] - 1):
        raise KernelFailed(f"{size.name} = {value} of the kernel {kernel.name} is no {size.dtype}")
    if value % size.multiple:
        raise KernelFailed(f"{size.name} = {value} of the kernel {kernel.name} is no multiple of {size.multiple}")
    return value
