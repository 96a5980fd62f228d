"""A GGUF file on disk: its metadata, and its tensors as views of the memory-mapped bytes.

Opening a file reads the header only. Sizes and offsets of all tensors are checked against the length of the file before
any of them is touched, because reading past the end of a mapping kills the process instead of raising.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from irx.errors import ModelNotFound, UnsupportedFile
from irx.frontends.gguf.header import Header, Metadata, TensorInfo, damaged, read_header
from irx.ir import blocks
from irx.ir.types import is_packed, numpy_dtype

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

# GGML's number of a storage type -> the dtype the compiler calls it by.
DTYPES = {
    0: "f32",
    1: "f16",
    2: "q4_0",
    3: "q4_1",
    6: "q5_0",
    7: "q5_1",
    8: "q8_0",
    12: "q4_k",
    13: "q5_k",
    14: "q6_k",
    28: "f64",
    30: "bf16",
}
# Storage types that exist and are not read, for the message.
_UNREAD = {10: "q2_k", 11: "q3_k", 16: "iq2_xxs", 17: "iq2_xs", 18: "iq3_xxs", 19: "iq1_s", 20: "iq4_nl", 21: "iq3_s"}
_UNREAD |= {22: "iq2_s", 23: "iq4_xs", 24: "i8", 25: "i16", 26: "i32", 27: "i64", 29: "iq1_m", 34: "tq1_0", 35: "tq2_0"}
_UNREAD |= {39: "mxfp4", 40: "nvfp4"}


@dataclass(frozen=True, eq=False)
class GgufTensor:
    """One tensor of the file, not yet read.

    `shape` is in elements, slowest axis first; `dtype` is an IR dtype, packed (`q4_1`) or plain (`f32`); `start` is its
    first byte in the file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int
    mapped: Array = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes the tensor takes in the file."""
        return math.prod(_stored_shape(self.shape, self.dtype)) * numpy_dtype(self.dtype).itemsize

    @property
    def data(self) -> Array:
        """The stored elements, a read-only view without a copy: `uint8[..., bytes of a row]` for a packed dtype,
        else the plain dtype in the tensor's shape.
        """
        raw = self.mapped[self.start : self.start + self.nbytes]
        return raw.view(numpy_dtype(self.dtype)).reshape(_stored_shape(self.shape, self.dtype))

    def values(self) -> Array:
        """All elements as float32, unpacked or converted: a copy, for tensors small enough to hold twice."""
        if is_packed(self.dtype):
            return blocks.unpack(self.data, self.dtype)
        return self.data.astype(np.float32)


@dataclass(frozen=True, eq=False)
class GgufFile:
    """An open GGUF file. `tensors` keeps the order of the file."""

    path: Path
    version: int
    metadata: Metadata
    tensors: Mapping[str, GgufTensor]

    @classmethod
    def open(cls, path: str | Path) -> GgufFile:
        """Map the file and read its header.

        Raises ModelNotFound when there is no such file, DamagedFile when it is truncated or contradicts itself, and
        UnsupportedFile for another version, byte order or storage type, or a model in several files.
        """
        path = Path(path)
        if not path.is_file():
            raise ModelNotFound(f"there is no file {path}", fix="give the path of a GGUF file")
        # numpy cannot map an empty file; as an array of no bytes it is reported as any other that is not GGUF.
        mapped: Array = (
            np.asarray(np.memmap(path, np.uint8, mode="r")) if path.stat().st_size else np.empty(0, np.uint8)
        )
        header = read_header(mapped.data, path)
        _require_single_file(header, path)
        tensors = {info.name: _locate(info, header, mapped, path) for info in header.tensors}
        _require_disjoint(tensors.values(), path)
        return cls(path, header.version, header.metadata, tensors)

    @property
    def architecture(self) -> str:
        """The name of the model's architecture, `general.architecture`. Raises DamagedFile when it is missing."""
        name = self.metadata.get("general.architecture")
        if not isinstance(name, str):
            raise damaged("general.architecture is missing", self.path, "metadata")
        return name

    @cached_property
    def sha256(self) -> str:
        """The hash of the whole file, in hexadecimal. Reads every byte, once."""
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def _stored_shape(shape: tuple[int, ...], dtype: str) -> tuple[int, ...]:
    return blocks.FORMATS[dtype].packed_shape(shape) if is_packed(dtype) else shape


def _locate(info: TensorInfo, header: Header, mapped: Array, path: Path) -> GgufTensor:
    """The tensor of a table entry, after checking that all of it lies inside the file."""
    where = f"tensor {info.name!r}"
    tensor = GgufTensor(info.name, info.shape, _dtype(info, path), header.data_start + info.offset, mapped)
    form = blocks.FORMATS.get(tensor.dtype)
    if form is not None and info.shape[-1] % form.elements:
        raise damaged(f"rows of {info.shape[-1]} elements are not whole blocks of {form.elements}", path, where)
    if info.offset % header.alignment:
        raise damaged(f"the offset {info.offset} is not a multiple of {header.alignment}", path, where)
    end = tensor.start + tensor.nbytes
    if end > len(mapped):
        raise damaged(f"the file ends early: it has {len(mapped)} bytes of at least {end}", path, where)
    return tensor


def _dtype(info: TensorInfo, path: Path) -> str:
    if info.storage in DTYPES:
        return DTYPES[info.storage]
    where = f"{path} (tensor {info.name!r})"
    known = f"convert the file to one of {', '.join(DTYPES.values())}"
    if info.storage in _UNREAD:
        raise UnsupportedFile(f"the storage type {_UNREAD[info.storage]} cannot be read", where=where, fix=known)
    raise UnsupportedFile(f"there is no known storage type {info.storage}", where=where, fix=known)


def _require_single_file(header: Header, path: Path) -> None:
    parts = header.metadata.get("split.count", 1)
    if parts != 1 and parts != 0:
        raise UnsupportedFile(f"a model split into {parts} files", where=str(path), fix="merge the parts into one file")


def _require_disjoint(tensors: Iterable[GgufTensor], path: Path) -> None:
    """Two tensors that share bytes mean that the table of tensors is damaged."""
    ordered = sorted(tensors, key=lambda tensor: tensor.start)
    for one, other in pairwise(ordered):
        if one.start + one.nbytes > other.start:
            raise damaged(f"the tensors {one.name!r} and {other.name!r} overlap", path, "table of tensors")
