"""AMX in software: where a kernel would execute an instruction on tiles, it calls numpy.

    with emulated(monkeypatch) as tiles:   # kernels made inside call back into this process, and run only in it
        ...
    # faults have been raised: tiles used without a configuration, sizes that do not match

A tile is as the processor's manual has it: up to 16 rows of up to 64 bytes, sizes from a configuration of 64 bytes.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest

from irx.backends.tvm import amx
from irx.backends.tvm.templates import gemm

TILE, ADDRESS = ("i8", ctypes.c_uint8), ("ptr", ctypes.c_void_p)
STRIDE = ("i64", ctypes.c_int64)
OPERANDS = {
    "ldtilecfg": (ADDRESS,),
    "tilerelease": (),
    "tilezero": (TILE,),
    "tileloadd64": (TILE, ADDRESS, STRIDE),
    "tilestored64": (TILE, ADDRESS, STRIDE),
    "tdpbf16ps": (TILE, TILE, TILE),
}


class Tiles:
    """The tiles of all threads."""

    def __init__(self) -> None:
        self.used: dict[str, int] = dict.fromkeys(OPERANDS, 0)
        self.faults: list[str] = []
        self._of_threads: dict[int, list[Any]] = {}
        self._callbacks = {
            name: ctypes.CFUNCTYPE(None, *(kind for _, kind in operands))(partial(self._checked, getattr(self, name)))
            for name, operands in OPERANDS.items()
        }

    def functions(self, vectors: int) -> str:
        """What `amx.functions` gives, with calls into this process for instructions."""
        text = re.sub(r"declare void @llvm\.x86\.[^\n]*\n", "", amx.functions(vectors))
        return text.replace("@llvm.x86.", "@emulated_") + "".join(map(self._definition, OPERANDS))

    def _definition(self, name: str) -> str:
        parameters = ", ".join(f"{dtype} %a{i}" for i, (dtype, _) in enumerate(OPERANDS[name]))
        address = ctypes.cast(self._callbacks[name], ctypes.c_void_p).value
        return f"""define internal void @emulated_{name}({parameters}) noinline {{
  %f = inttoptr i64 {address} to ptr
  call void %f({parameters})
  ret void
}}
"""

    def _checked(self, instruction: Callable[..., None], *operands: int) -> None:
        """Run an instruction; what goes wrong in there could not be raised through the kernel."""
        self.used[instruction.__name__] += 1
        try:
            instruction(*operands)
        except (ValueError, LookupError) as error:
            self.faults.append(f"{instruction.__name__}{operands}: {error!r}")

    @property
    def _tiles(self) -> list[Any]:
        """The tiles of this thread as bytes [rows, bytes of a row]. Raises LookupError without a configuration."""
        return self._of_threads[threading.get_ident()]

    def ldtilecfg(self, address: int) -> None:
        """Sizes of eight tiles, all of which are zero then."""
        raw = np.frombuffer(ctypes.string_at(address, 64), np.uint8)
        if raw[0] != 1 or raw[1] != 0 or raw[2:16].any() or raw[32:48].any() or raw[56:].any():
            raise ValueError(f"not a configuration: {raw.tobytes().hex()}")
        widths, rows = raw[16:32].view(np.uint16), raw[48:56]
        if rows.max() > 16 or widths.max() > 64:
            raise ValueError(f"too large: {rows} rows of {widths} bytes")
        sizes = zip(rows, widths, strict=True)
        self._of_threads[threading.get_ident()] = [np.zeros((int(r), int(w)), np.uint8) for r, w in sizes]

    def tilerelease(self) -> None:
        """Back to no configuration."""
        del self._of_threads[threading.get_ident()]

    def tilezero(self, tile: int) -> None:
        """All zeros."""
        self._tiles[tile][:] = 0

    def tileloadd64(self, tile: int, address: int, stride: int) -> None:
        """Rows `stride` bytes apart."""
        rows = self._tiles[tile]
        for i, row in enumerate(rows):
            row[:] = np.frombuffer(ctypes.string_at(address + i * stride, len(row)), np.uint8)

    def tilestored64(self, tile: int, address: int, stride: int) -> None:
        """Rows `stride` bytes apart."""
        for i, row in enumerate(self._tiles[tile]):
            ctypes.memmove(address + i * stride, row.tobytes(), len(row))

    def tdpbf16ps(self, sums: int, left: int, right: int) -> None:
        """Float32 sums plus pairs of bfloat16: [m, n] += left [m, 2 k] times right, pairs [k, 2 n]."""
        total, a, b = (self._tiles[tile] for tile in (sums, left, right))
        if a.shape[1] // 4 != len(b) or total.shape != (len(a), b.shape[1]):
            raise ValueError(f"{total.shape} += {a.shape} x {b.shape}")
        x, w = _floats(a).reshape(len(a), -1, 2), _floats(b).reshape(len(b), -1, 2)
        total.view(np.float32)[:] += np.einsum("mkp,knp->mn", x, w)

    @property
    def configured(self) -> int:
        """Threads that have a configuration."""
        return len(self._of_threads)


def _floats(tile: Any) -> Any:
    """bfloat16 as float32."""
    return (tile.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


@contextmanager
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tiles]:
    """Kernels made inside use emulated tiles. Faults fail the test at the end."""
    tiles = Tiles()
    monkeypatch.setattr(gemm, "functions", tiles.functions)
    yield tiles
    assert not tiles.faults
    assert not tiles.configured, "a thread kept its configuration"
