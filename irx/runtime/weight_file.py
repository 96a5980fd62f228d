"""Writing a safetensors file one array at a time.

The safetensors library writes arrays that are all in memory; a compiler that derives weights one by one must not hold
them all. The format is a length, a JSON header with names, shapes and offsets, and the bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from irx.ir.types import numpy_dtype

if TYPE_CHECKING:
    from irx.ir.opdef import Array

_NAMES = {
    "bool": "BOOL",
    "u8": "U8",
    "i8": "I8",
    "i16": "I16",
    "i32": "I32",
    "i64": "I64",
    "f16": "F16",
    "bf16": "BF16",
    "f32": "F32",
    "f64": "F64",
    "f8e4m3": "F8_E4M3",
    "f8e5m2": "F8_E5M2",
}
_ALIGNMENT = 64  # so that memory-mapped weights start where vector loads like them


@dataclass(frozen=True)
class StoredArray:
    """An array to write: its name, shape and IR dtype are known before `load` makes it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], Array]

    @property
    def bytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * numpy_dtype(self.dtype).itemsize


def write_weights(path: Path, arrays: Sequence[StoredArray]) -> None:
    """Write arrays to a safetensors file; each is released before the next is asked for."""
    with path.open("wb") as file:
        text = _header(arrays)
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for stored in arrays:
            array = np.ascontiguousarray(stored.load())
            if array.nbytes != stored.bytes:
                raise ValueError(f"{stored.name}: {array.nbytes} bytes instead of {stored.bytes}")
            file.write(array.reshape(-1).view(np.uint8).data)


def _header(arrays: Sequence[StoredArray]) -> bytes:
    entries, start = {}, 0
    for stored in arrays:
        offsets = [start, start + stored.bytes]
        entries[stored.name] = {"dtype": _NAMES[stored.dtype], "shape": stored.shape, "data_offsets": offsets}
        start = offsets[1]
    text = json.dumps(entries).encode()
    return text + b" " * (-(len(text) + 8) % _ALIGNMENT)
