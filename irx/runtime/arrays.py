"""Running one graph of an executable on numpy arrays, as a check against the oracle does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from irx.ir.graph import Value
from irx.ir.opdef import Array
from irx.ir.types import KVType
from irx.ops.cache import KVArrays
from irx.runtime.kernel import GraphKernel
from irx.runtime.kv import KVState, empty_state
from irx.runtime.tensors import from_numpy, to_numpy


def run_graph(kernel: GraphKernel, inputs: Mapping[str, Any], device: torch.device) -> list[Any]:
    """The outputs of a graph, in order: arrays in the dtypes of the graph, and KVArrays for KV states.

    `inputs` are by name: arrays that fit the graph's types, and for its KV states KVArrays with a token in every slot,
    or without any.
    """
    with torch.no_grad():
        outputs = kernel(*(given(value, inputs[value.name], device) for value in kernel.inputs))
    return [_state(output) if isinstance(output, KVState) else to_numpy(output) for output in outputs]


def given(value: Value, array: Array | KVArrays, device: torch.device) -> Any:
    """One input as a kernel takes it: a tensor of its own, or a state with the tokens of the arrays."""
    if isinstance(value.type, KVType):
        assert isinstance(array, KVArrays)
        return _filled(empty_state(value.type, len(array.k), device), array)
    assert not isinstance(array, KVArrays)
    return from_numpy(array).to(device, copy=True)  # what is broadcast or read-only becomes an ordinary tensor


def _filled(state: KVState, array: KVArrays) -> KVState:
    """The state with the tokens of the array, of positions 0, 1, ... in every row."""
    count = array.positions.shape[2]
    if count:
        state.reserve(count, count)
        device = state.keys.device
        state.keys.write(0, from_numpy(array.k).to(device, copy=True).float())
        state.values.write(0, from_numpy(array.v).to(device, copy=True).float())
        state.lengths = (count,) * len(array.k)
    return state


def _state(state: KVState) -> KVArrays:
    """The slots up to the last one in use."""
    positions = to_numpy(state.slot_positions())
    end = int((positions >= 0).any(axis=(0, 1)).sum())
    return KVArrays(to_numpy(state.k)[:, :, :end], to_numpy(state.v)[:, :, :end], positions[:, :, :end])
