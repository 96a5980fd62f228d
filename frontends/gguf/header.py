"""The header of a GGUF file: metadata and the table of tensors, read with every length checked against the file.

Written here rather than taken from the `gguf` package because a damaged file must give one error that says where, and
because a header may claim any length: the package's reader loops over as many elements as an array claims to hold, and
reports truncation as a numpy error about shapes. It serves as the second opinion in the tests instead.

    "GGUF" u32 version, u64 tensors, u64 entries
    entry:  string key, u32 type, value        string: u64 length, UTF-8 bytes      array: u32 type, u64 count, items
    tensor: string name, u32 rank, u64 sizes (fastest first), u32 storage type, u64 offset into the data
    padding up to general.alignment (32), then the data
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from irx.errors import DamagedFile, UnsupportedFile

Metadata: TypeAlias = dict[str, Any]

_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9
_LARGEST_RANK = 4
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class TensorInfo:
    """One row of the tensor table: sizes slowest first, the GGML storage type, bytes from the start of the data."""

    name: str
    shape: tuple[int, ...]
    storage: int
    offset: int


@dataclass(frozen=True)
class Header:
    """Everything before the data, which starts at byte `data_start` of the file."""

    version: int
    metadata: Metadata
    tensors: tuple[TensorInfo, ...]
    alignment: int
    data_start: int


def damaged(what: str, path: Path, where: str) -> DamagedFile:
    """The error for a file whose contents cannot be right."""
    return DamagedFile(what, where=f"{path} ({where})", fix="download or convert the file again")


class _Cursor:
    """Reads little-endian values one after another and never past the end."""

    def __init__(self, data: memoryview, path: Path) -> None:
        self.data, self.path = data, path
        self.at = 0
        self.reading = "the header"

    def fail(self, what: str) -> DamagedFile:
        return damaged(what, self.path, f"byte {self.at} of {len(self.data)}, reading {self.reading}")

    def bytes(self, count: int) -> memoryview:
        if count > len(self.data) - self.at:
            raise self.fail(f"the file ends early: {count} more bytes are needed")
        self.at += count
        return self.data[self.at - count : self.at]

    def u32(self) -> int:
        return int(struct.unpack("<I", self.bytes(4))[0])

    def u64(self) -> int:
        return int(struct.unpack("<Q", self.bytes(8))[0])

    def count(self, least: int) -> int:
        """A number of items of at least `least` bytes each."""
        count = self.u64()
        if count * least > len(self.data) - self.at:
            raise self.fail(f"the file ends early: it announces {count} items that do not fit")
        return count

    def string(self) -> str:
        raw = self.bytes(self.u64())
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError as error:
            raise self.fail("a text is not UTF-8") from error

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        dtype = self.scalar_type(kind)
        return np.frombuffer(self.bytes(dtype.itemsize), dtype)[0].item()

    def scalar_type(self, kind: int) -> np.dtype[Any]:
        if kind not in _SCALARS:
            raise self.fail(f"there is no value type {kind} here")
        return np.dtype(_SCALARS[kind])

    def array(self) -> list[Any]:
        kind = self.u32()
        if kind == _STRING:
            return [self.string() for _ in range(self.count(8))]
        dtype = self.scalar_type(kind)
        count = self.count(dtype.itemsize)
        items: list[Any] = np.frombuffer(self.bytes(count * dtype.itemsize), dtype).tolist()
        return items


def read_header(data: memoryview, path: Path) -> Header:
    """Parse the header of the GGUF file whose bytes are `data`; `path` appears in messages.

    Raises DamagedFile for anything that is not a whole header, UnsupportedFile for another version or byte order.
    """
    cursor = _Cursor(data, path)
    version = _version(cursor)
    tensor_count, entry_count = cursor.count(24), cursor.count(13)
    metadata = _metadata(cursor, entry_count)
    tensors = _tensors(cursor, tensor_count)
    alignment = _alignment(cursor, metadata)
    return Header(version, metadata, tensors, alignment, -(-cursor.at // alignment) * alignment)


def _version(cursor: _Cursor) -> int:
    if bytes(cursor.data[:4]) != b"GGUF":
        raise DamagedFile("not a GGUF file", where=str(cursor.path), fix="give a file that starts with the bytes GGUF")
    cursor.bytes(4)
    version = cursor.u32()
    if version in (2, 3):
        return version
    variant = "of big-endian machines" if version & 0xFFFF == 0 else f"of version {version}"
    raise UnsupportedFile(
        f"a GGUF file {variant}", where=str(cursor.path), fix="convert it to version 3, little-endian"
    )


def _metadata(cursor: _Cursor, count: int) -> Metadata:
    metadata: Metadata = {}
    for _ in range(count):
        cursor.reading = "the next metadata key"
        key = cursor.string()
        cursor.reading = f"metadata {key!r}"
        if key in metadata:
            raise cursor.fail("a metadata key appears twice")
        metadata[key] = cursor.value(cursor.u32())
    return metadata


def _tensors(cursor: _Cursor, count: int) -> tuple[TensorInfo, ...]:
    tensors: dict[str, TensorInfo] = {}
    for _ in range(count):
        cursor.reading = "the next tensor's name"
        name = cursor.string()
        cursor.reading = f"the table entry of tensor {name!r}"
        if name in tensors:
            raise cursor.fail("a tensor appears twice")
        tensors[name] = _tensor(cursor, name)
    return tuple(tensors.values())


def _tensor(cursor: _Cursor, name: str) -> TensorInfo:
    rank = cursor.u32()
    if not 1 <= rank <= _LARGEST_RANK:
        raise cursor.fail(f"a tensor cannot have {rank} dimensions")
    sizes = [cursor.u64() for _ in range(rank)]
    if 0 in sizes:
        raise cursor.fail("a tensor has no elements")
    return TensorInfo(name, tuple(reversed(sizes)), cursor.u32(), cursor.u64())


def _alignment(cursor: _Cursor, metadata: Metadata) -> int:
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if isinstance(alignment, int) and alignment > 0 and alignment & (alignment - 1) == 0:
        return alignment
    raise cursor.fail(f"general.alignment is {alignment!r}, not a power of two")
