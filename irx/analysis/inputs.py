"""Inputs of a graph: which sizes they bind, and random ones for checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from irx.errors import InputMismatch
from irx.ir.blocks import FORMATS
from irx.ir.dims import Bindings, Dim, evaluate
from irx.ir.graph import Graph, Node, Value
from irx.ir.opdef import Array
from irx.ir.packing import random_blocks
from irx.ir.regions import expanded
from irx.ir.types import KVType, TensorType, is_float, is_packed, numpy_dtype
from irx.ops.cache import KVArrays

_SMALL = 4  # exclusive bound of random integers of unknown meaning


def bind_sizes(graph: Graph, inputs: Mapping[str, Any], bindings: Bindings) -> dict[str, int]:
    """Values of all named sizes: those given, and those that the shapes of the inputs say.

    Raises InputMismatch for a missing input, a wrong rank, or a size that contradicts the type or another input.
    """
    sizes = dict(bindings)
    tensors = [(v, _logical_shape(v, _given(v, inputs))) for v in graph.inputs if isinstance(v.type, TensorType)]
    for value, shape in tensors:
        if len(shape) != value.tensor.rank:
            raise InputMismatch(f"input {value.name!r} has the shape {shape}, but {value.type} is needed")
        for dim, size in zip(value.shape, shape, strict=True):
            if str(dim).isidentifier():
                sizes.setdefault(str(dim), size)
    for value, shape in tensors:
        expected = tuple(_evaluate(dim, sizes, value) for dim in value.shape)
        if expected != shape:
            raise InputMismatch(f"input {value.name!r} has the shape {shape}, but {value.type} means {expected}")
    return sizes


def _given(value: Value, inputs: Mapping[str, Any]) -> Any:
    if value.name not in inputs:
        raise InputMismatch(f"input {value.name!r}: {value.type} is missing", fix=f"given: {', '.join(inputs)}")
    return inputs[value.name]


def _logical_shape(value: Value, array: Any) -> tuple[int, ...]:
    shape = np.shape(array)
    return FORMATS[value.dtype].logical_shape(shape) if is_packed(value.dtype) else shape


def _evaluate(dim: Dim, sizes: Bindings, value: Value) -> int:
    try:
        return evaluate(dim, sizes)
    except KeyError as error:
        raise InputMismatch(f"the size {error} of input {value.name!r} has no value", fix="bind it by name") from None


def random_inputs(graph: Graph, bindings: Bindings, seed: int = 0) -> dict[str, Any]:
    """Inputs by name, in the dtypes of their types: normal floats, booleans, and integers fit for how they are used.

    Ids are below the size of the table they look up, positions count from 0, other integers are below 4; KV states are
    empty, but for those that are only attended to, which hold a token for each of these positions; packed weights are
    small. `bindings` must hold every named size of the inputs.
    """
    generator = np.random.default_rng(seed)
    plain = expanded(graph)
    return {value.name: _random(plain, value, bindings, generator) for value in plain.inputs}


def _random(graph: Graph, value: Value, bindings: Bindings, generator: np.random.Generator) -> Any:
    if isinstance(value.type, KVType):
        return _state(graph, value, value.type, bindings, generator)
    shape = tuple(_evaluate(dim, bindings, value) for dim in value.shape)
    if is_packed(value.dtype):
        return random_blocks(generator, shape, value.dtype)
    if is_float(value.dtype):
        return generator.standard_normal(shape).astype(numpy_dtype(value.dtype))
    if value.dtype == "bool":
        return generator.integers(0, 2, shape).astype(bool)
    return _random_integers(graph, value, shape, bindings, generator).astype(numpy_dtype(value.dtype))


def _state(graph: Graph, value: Value, kv: KVType, bindings: Bindings, generator: np.random.Generator) -> KVArrays:
    state = KVArrays.empty(kv, _batch(graph, bindings))
    readers = graph.users(value)
    if not readers or any(node.op.name != "kv_attention" for node in readers):
        return state
    positions = readers[0].operand("pos")
    assert positions is not None, "kv_attention knows the positions of its queries"
    state = state.grown(_evaluate(positions.shape[1], bindings, positions))
    state.positions[:] = np.arange(state.positions.shape[2])
    for array in (state.k, state.v):
        array[:] = generator.standard_normal(array.shape).astype(numpy_dtype(kv.dtype) if is_float(kv.dtype) else "f4")
        array[:] = state.stored(array)
    return state


def _random_integers(
    graph: Graph, value: Value, shape: tuple[int, ...], bindings: Bindings, generator: np.random.Generator
) -> Array:
    users = graph.users(value)
    if any(_is_position(value, node) for node in users):
        return np.broadcast_to(np.arange(shape[-1]), shape)
    if any(node.op.name == "scatter_tokens" for node in users):  # no token is replaced twice
        return np.broadcast_to(np.arange(shape[-1]), shape)
    if any(node.op.name == "merge_tokens" for node in users):  # odd tokens go into the even ones before them
        goes = any(node.op.name == "merge_tokens" and node.inputs[2] is value for node in users)
        return np.broadcast_to(2 * np.arange(shape[-1]) + goes, shape)
    tables = [size for node in users if (size := _table_size(value, node)) is not None]
    return generator.integers(0, min((evaluate(size, bindings) for size in tables), default=_SMALL), shape)


def _is_position(value: Value, node: Node) -> bool:
    names = {p.name for p, v in zip(node.op.operands, node.inputs, strict=False) if v is value}
    return bool(names & {"pos", "positions", "positions_q", "slots"})


def _table_size(value: Value, node: Node) -> Dim | None:
    """How many entries the table has that `node` looks `value` up in, if it does."""
    if node.op.name == "embedding" and node.inputs[0] is value:
        table, axis = node.inputs[1], 0
    elif node.op.name == "moe" and node.inputs[1] is value:
        table, axis = node.inputs[4], 0
    elif node.op.name == "gather_tokens" and node.inputs[1] is value:
        table, axis = node.inputs[0], 1
    elif node.op.name in ("take", "gather") and node.inputs[1] is value:
        table, axis = node.inputs[0], int(str(node.attr("axis")))
    else:
        return None
    return None if table is None else table.shape[axis]


def _batch(graph: Graph, bindings: Bindings) -> int:
    tensors = [v for v in graph.inputs if isinstance(v.type, TensorType) and v.type.shape]
    return _evaluate(tensors[0].shape[0], bindings, tensors[0]) if tensors else 1
