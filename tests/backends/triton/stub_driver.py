"""A stand-in for libcuda: answers as the driver does, keeps what it was told, and fails where a test wants it to."""

from __future__ import annotations

import ctypes
from typing import Any

LARGEST_SHARED = 227 * 1024


class StubCuda:
    """One GPU of the given capability. `failing` are error codes by function name."""

    def __init__(self, capability: tuple[int, int] = (9, 0), failing: dict[str, int] | None = None) -> None:
        self.capability, self.failing = capability, failing or {}
        self.context: int | None = None
        self.images: list[bytes] = []
        self.attributes: dict[int, int] = {}
        self.launches: list[tuple[tuple[int, ...], int, int, list[int]]] = []
        self.symbols: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def function(*arguments: Any) -> int:
            if code := self.failing.get(name):
                return code
            answer = getattr(StubCuda, f"_{name}")
            return int(answer(self, *arguments) or 0)

        if not hasattr(StubCuda, f"_{name}"):
            raise AttributeError(name)
        return function

    def _cuInit(self, flags: ctypes.c_uint) -> None:
        assert flags.value == 0

    def _cuDeviceGet(self, device: Any, number: ctypes.c_int) -> None:
        device._obj.value = 7 + number.value

    def _cuDriverGetVersion(self, version: Any) -> None:
        version._obj.value = 12080

    def _cuDeviceGetAttribute(self, value: Any, number: ctypes.c_int, device: ctypes.c_int) -> None:
        assert device.value == 7
        facts = {75: self.capability[0], 76: self.capability[1], 97: LARGEST_SHARED}
        value._obj.value = facts[number.value]

    def _cuCtxGetCurrent(self, context: Any) -> None:
        context._obj.value = self.context

    def _cuDevicePrimaryCtxRetain(self, context: Any, device: ctypes.c_int) -> None:
        context._obj.value = 99

    def _cuCtxSetCurrent(self, context: ctypes.c_void_p) -> None:
        self.context = context.value

    def _cuMemGetInfo_v2(self, free: Any, total: Any) -> None:
        free._obj.value, total._obj.value = 3 * 10**9, 8 * 10**9

    def _cuModuleLoadData(self, module: Any, image: Any) -> None:
        assert self.context is not None
        self.images.append(image.raw)
        module._obj.value = len(self.images)

    def _cuModuleGetFunction(self, function: Any, module: ctypes.c_void_p, symbol: bytes) -> None:
        self.symbols.append(symbol.decode())
        function._obj.value = 1000 + len(self.symbols)

    def _cuFuncSetCacheConfig(self, function: ctypes.c_void_p, config: ctypes.c_int) -> None:
        assert config.value == 1

    def _cuFuncSetAttribute(self, function: ctypes.c_void_p, number: ctypes.c_int, value: ctypes.c_int) -> None:
        self.attributes[number.value] = value.value

    def _cuLaunchKernel(self, function: Any, *shape_stream_and_pointers: Any) -> None:
        *shape, stream, pointers, extra = shape_stream_and_pointers
        assert extra is None and len(shape) == 7
        values = [ctypes.c_uint64.from_address(pointer).value for pointer in pointers]
        self.launches.append((tuple(part.value for part in shape), function.value, stream.value or 0, values))
