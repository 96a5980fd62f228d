"""IR dtypes as torch dtypes, and arrays of the weight store as tensors over the same memory."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from irx.ir.opdef import Array
from irx.ir.types import dtype_of, numpy_dtype

TORCH: dict[str, torch.dtype] = {
    "bool": torch.bool,
    "u8": torch.uint8,
    "i8": torch.int8,
    "i16": torch.int16,
    "i32": torch.int32,
    "i64": torch.int64,
    "f8e4m3": torch.float8_e4m3fn,
    "f8e5m2": torch.float8_e5m2,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f32": torch.float32,
    "f64": torch.float64,
}
IR: dict[torch.dtype, str] = {value: key for key, value in TORCH.items()}


@dataclass(frozen=True)
class Packed:
    """A block-quantized weight: its raw bytes as a uint8 tensor, and the name of the format (`irx.ir.blocks`)."""

    raw: torch.Tensor
    form: str


def from_numpy(array: Array) -> torch.Tensor:
    """The array as a tensor, over the same memory where it is contiguous; bf16 and fp8 too. Not to be written to."""
    shape, dtype = array.shape, TORCH[dtype_of(array.dtype)]
    array = np.ascontiguousarray(array)  # makes scalars one-dimensional
    plain = array.view({1: np.uint8, 2: np.int16}[array.itemsize]) if array.dtype.kind == "V" else array
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns of read-only memory, as that of a mapped file
        return torch.from_numpy(plain).view(dtype).reshape(shape)


def to_numpy(tensor: torch.Tensor) -> Array:
    """The tensor's elements as an array of the matching numpy dtype; over the same memory on the CPU."""
    plain = tensor.detach().cpu().contiguous()
    if tensor.dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        same_size = torch.int16 if plain.element_size() == 2 else torch.uint8
        return plain.view(same_size).numpy().view(numpy_dtype(IR[tensor.dtype])).reshape(plain.shape)
    return plain.numpy()
