"""A parameter as a GGUF file keeps it, and the exact steps between that and what the model expects.

Nothing is dequantized here. A reordering of rows moves rows of packed bytes, since blocks never cross rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from irx.errors import UnsupportedFile
from irx.frontends.gguf.reader import Array, GgufTensor
from irx.ir import blocks
from irx.ir.types import is_packed


@dataclass(frozen=True)
class Unpermute:
    """Rows of each head from rotary pairs side by side (0, 1), (2, 3) ... to pairs half a head apart (0, d/2) ...

    Applies to `[heads * d, ...]`, packed or not, and to biases.
    """

    heads: int

    def apply(self, data: Array) -> Array:
        """The reordered rows, a copy."""
        pairs = data.reshape(self.heads, -1, 2, *data.shape[1:])
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(data.shape)


@dataclass(frozen=True)
class MinusOne:
    """The weight w of a norm that multiplies by 1 + w, from the sum, which is what the file keeps."""

    def apply(self, data: Array) -> Array:
        """The float32 difference."""
        return data.astype(np.float32) - np.float32(1)


Transform: TypeAlias = Unpermute | MinusOne


@dataclass(frozen=True)
class StoredWeight:
    """One parameter: `load` gives it in its storage format, `dtype` and `shape` say which and how large.

    `dtype` is an IR dtype. A packed one (`q4_1`) keeps the logical shape and loads `uint8[..., bytes of a row]`, to be
    read by `irx.dequantize`; a plain one (`f32`, `f16`, `bf16`) loads an array of that dtype and shape.
    """

    tensor: GgufTensor
    transform: Transform | None = None

    def __post_init__(self) -> None:
        if isinstance(self.transform, MinusOne) and is_packed(self.tensor.dtype):
            raise UnsupportedFile(f"the norm {self.tensor.name!r} is block-quantized", fix="keep norms in float32")

    @property
    def dtype(self) -> str:
        """The IR dtype of what `load` gives."""
        return "f32" if isinstance(self.transform, MinusOne) else self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes in elements."""
        return self.tensor.shape

    def load(self) -> Array:
        """The stored array: a read-only view of the mapped file, or a copy where rows move or a norm is shifted."""
        return self.transform.apply(self.tensor.data) if self.transform else self.tensor.data

    def values(self) -> Array:
        """The elements as float32: what the model computes with. A copy."""
        stored = self.load()
        return blocks.unpack(stored, self.dtype) if is_packed(self.dtype) else stored.astype(np.float32)
