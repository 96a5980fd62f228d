"""NVIDIA's driver, called through ctypes: stored binaries are loaded and launched without triton or a C compiler.

    driver = open_driver()                      # raises NoGpu
    function = driver.load(binary, "rms_norm_12ab", device, usage, kinds)
    call = Launch(function, grid)               # arguments in slots of 8 bytes, changed in place between runs
    call.set(0, x.data_ptr()); call.set(2, rows)
    call.run(stream)

Every kernel of Triton ends with two pointers of its launcher's own, to scratch memory that none of ours has: they stay
null. Nothing here imports torch, so the context that is current is torch's own where torch has started CUDA.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

from irx.backends.triton.resources import require_fit
from irx.backends.triton.usage import Usage
from irx.errors import DamagedArtifact, DriverTooOld, KernelFailed, MissingFeature, NoGpu, OtherArchitecture
from irx.target import Device, runs_on

LIBRARY = "libcuda.so.1"
HIDDEN = 2  # pointers at the end of every kernel's parameters
PLAIN_SHARED = 48 * 1024  # more has to be asked for

_MAJOR, _MINOR, _SHARED_OPT_IN, _PREFER_SHARED = 75, 76, 97, 1
_DYNAMIC_SHARED = 8
_UNREADABLE = (200, 209, 218, 222, 300)  # the image is of a form or for an architecture that the driver does not know


class Driver:
    """The first GPU of this process. `library` answers as libcuda does."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._device = ctypes.c_int()
        try:
            self.call("cuInit", ctypes.c_uint(0))
            self.call("cuDeviceGet", ctypes.byref(self._device), ctypes.c_int(0))
        except CallFailed as error:
            raise NoGpu(f"the driver finds no GPU ({error.what})", fix="run it on a machine that has one") from error
        self.architecture = f"sm_{self.attribute(_MAJOR)}{self.attribute(_MINOR)}"
        version = ctypes.c_int()
        self.call("cuDriverGetVersion", ctypes.byref(version))
        self.version = f"{version.value // 1000}.{version.value % 1000 // 10}"
        self._modules: list[ctypes.c_void_p] = []

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver. Raises CallFailed for any answer but success."""
        code = getattr(self._library, name)(*arguments)
        if code:
            raise CallFailed(name, int(code))

    def attribute(self, number: int) -> int:
        """A fact about the GPU, by the driver's number for it."""
        value = ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(number), self._device)
        return value.value

    def load(self, binary: bytes, symbol: str, device: Device, usage: Usage, kinds: Sequence[int]) -> Function:
        """A kernel, ready to be launched. `kinds` are the bytes of its parameters without the hidden ones.

        Raises OtherArchitecture, DriverTooOld, KernelTooLarge, and DamagedArtifact where the binary takes others.
        """
        self.require(device)
        require_fit(usage, symbol, device)
        self._require_shared(usage, symbol)
        if usage.parameters != (*kinds, *(8,) * HIDDEN):
            raise DamagedArtifact(f"the binary takes {usage.parameters}, not {tuple(kinds)}", where=symbol)
        self._start()
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self._read(module, binary, symbol)
        self.call("cuModuleGetFunction", ctypes.byref(function), module, symbol.encode())
        if usage.shared > PLAIN_SHARED:
            self.call("cuFuncSetCacheConfig", function, ctypes.c_int(_PREFER_SHARED))
            self.call("cuFuncSetAttribute", function, ctypes.c_int(_DYNAMIC_SHARED), ctypes.c_int(usage.shared))
        self._modules.append(module)
        return Function(self, symbol, function, len(kinds), usage.warps, usage.shared)

    def require(self, device: Device) -> None:
        """Raises OtherArchitecture where binaries for the device do not run on this GPU."""
        if not runs_on(device.architecture, self.architecture):
            fix = f"compile for it, or load it where triton is installed (it was compiled for {device.name})"
            raise OtherArchitecture(device.architecture, self.architecture, fix=fix)

    def memory(self) -> tuple[int, int]:
        """Bytes of memory that are free, and all."""
        self._start()
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def _start(self) -> None:
        """Make a context current: the one that is, else the GPU's primary one, which torch uses too."""
        context = ctypes.c_void_p()
        self.call("cuCtxGetCurrent", ctypes.byref(context))
        if not context.value:
            self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
            self.call("cuCtxSetCurrent", context)

    def _read(self, module: ctypes.c_void_p, binary: bytes, symbol: str) -> None:
        try:
            self.call("cuModuleLoadData", ctypes.byref(module), ctypes.create_string_buffer(binary, len(binary)))
        except CallFailed as error:
            if error.code not in _UNREADABLE:
                raise
            what = f"the driver, of CUDA {self.version}, does not read the binary of {symbol} ({error.what})"
            fix = "update the driver, or compile with an older triton: its ptxas decides what a driver has to know"
            raise DriverTooOld(what, fix=fix) from error

    def _require_shared(self, usage: Usage, symbol: str) -> None:
        """The device's file may be wrong about this GPU; the driver is not."""
        most = self.attribute(_SHARED_OPT_IN)
        if usage.shared > most:
            raise MissingFeature(f"{symbol} takes {usage.shared} bytes of shared memory, this GPU has {most}")


class CallFailed(KernelFailed):
    """A function of the driver gave an error code."""

    def __init__(self, name: str, code: int) -> None:
        self.name, self.code = name, code
        super().__init__(f"{name} gave error {code}")


class Function:
    """A loaded kernel. The module it belongs to lives as long as the driver's object."""

    def __init__(self, driver: Driver, symbol: str, handle: Any, count: int, warps: int, shared: int) -> None:
        self.driver, self.symbol, self.handle = driver, symbol, handle
        self.count, self.warps, self.shared = count, warps, shared


class Launch:
    """A function with a grid and arguments. One launch belongs to one caller at a time."""

    def __init__(self, function: Function, grid: tuple[int, int, int]) -> None:
        total = function.count + HIDDEN
        self._slots = (ctypes.c_uint64 * total)()
        start = ctypes.addressof(self._slots)
        self._pointers = (ctypes.c_void_p * total)(*(start + 8 * number for number in range(total)))
        self._function = function
        threads = 32 * function.warps
        self._shape = tuple(map(ctypes.c_uint, (*grid, threads, 1, 1, function.shared)))
        self._empty = 0 in grid
        self._launch = function.driver._library.cuLaunchKernel

    def set(self, number: int, value: int) -> None:
        """Give a parameter an address or an integer, of which a narrow one takes the low bytes."""
        self._slots[number] = value & 0xFFFFFFFFFFFFFFFF

    def run(self, stream: int) -> None:
        """Launch it. Nothing is launched for a grid without programs. Raises CallFailed."""
        if self._empty:
            return
        code = self._launch(self._function.handle, *self._shape, ctypes.c_void_p(stream), self._pointers, None)
        if code:
            raise CallFailed(f"launching {self._function.symbol}", int(code))


@cache
def open_driver() -> Driver:
    """The driver of this machine. Raises NoGpu."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        what = f"the kernels are for a GPU, and this machine has no driver for one ({error})"
        raise NoGpu(what, fix="run it on a machine that has one") from error
    return Driver(library)
