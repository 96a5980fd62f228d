"""Torch tensors as weights of a program: dtypes, zero-copy numpy views, and tied weights found by their storage."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch._subclasses import FakeTensor

from irx.errors import ExportFailed
from irx.ir.graph import Graph, Value, Weight
from irx.ir.opdef import Array
from irx.ir.types import TensorType, numpy_dtype
from irx.ir.weights import Weights

_DTYPES: dict[torch.dtype, str] = {
    torch.bool: "bool",
    torch.uint8: "u8",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float32: "f32",
    torch.float64: "f64",
    torch.float8_e4m3fn: "f8e4m3",
    torch.float8_e5m2: "f8e5m2",
}
# numpy has no such dtypes: the bytes are read as integers of the same width and relabelled.
_CARRIERS = {torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.uint8, torch.float8_e5m2: torch.uint8}


def dtype_name(dtype: torch.dtype) -> str:
    """The IR's name of a torch dtype. Raises ExportFailed for complex, quantized and other foreign ones."""
    name = _DTYPES.get(dtype)
    if name is None:
        raise ExportFailed(f"the model computes in {dtype}, which IRX does not have", fix="use real float dtypes")
    return name


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of an IR dtype name."""
    return next(dtype for dtype, text in _DTYPES.items() if text == name)


def as_array(tensor: torch.Tensor) -> Array:
    """The tensor's elements as numpy, without a copy where it is contiguous on the CPU."""
    tensor = tensor.detach().cpu().contiguous()
    carrier = _CARRIERS.get(tensor.dtype)
    if carrier is None:
        return np.asarray(tensor.numpy())
    return np.asarray(tensor.view(carrier).numpy()).view(numpy_dtype(dtype_name(tensor.dtype)))


class WeightTable:
    """Adds tensors to a program's weights, each storage once, under the first name it was met by."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self._known: dict[tuple[object, ...], Weight] = {}
        # Storages are told apart by address, so every tensor that was looked at has to stay alive.
        self._alive: list[torch.Tensor] = []

    def add(self, name: str, tensor: torch.Tensor) -> Weight:
        """The weight for `tensor`; a view of the same elements added before is that weight again.

        Tensors on the meta device have no elements: their weights wait for `Weights.bind`.
        """
        key = _identity(tensor)
        if key not in self._known:
            type = TensorType(tuple(tensor.shape), dtype_name(tensor.dtype))
            self._known[key] = self.weights.add(name, type, _loader(tensor))
            self._alive.append(tensor)
        return self._known[key]


def _identity(tensor: torch.Tensor) -> tuple[object, ...]:
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _loader(tensor: torch.Tensor) -> Callable[[], Array] | None:
    return None if tensor.is_meta else lambda: as_array(tensor)


def constant(graph: Graph, table: WeightTable, name: str, tensor: torch.Tensor) -> Value:
    """A constant that belongs to no module: a number is written into the graph, anything larger is a weight."""
    known = not tensor.is_meta and not isinstance(tensor, FakeTensor) and not tensor.is_complex()
    if tensor.dim() == 0 and known:
        attrs = {"shape": (), "value": tensor.item(), "dtype": dtype_name(tensor.dtype)}
        return graph.add("full", [], attrs).output
    return table.add(name, tensor)
