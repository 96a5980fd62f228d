"""From a program's weights to those of an executable: copies on the device, arrays for an artifact, declarations."""

from __future__ import annotations

from functools import partial

from irx.ir.blocks import FORMATS
from irx.ir.graph import Weight
from irx.ir.opdef import Array
from irx.ir.program import Program
from irx.ir.types import is_packed
from irx.ir.weights import Weights
from irx.runtime.store import Stored, WeightStore
from irx.runtime.tensors import Packed, from_numpy, to_numpy
from irx.runtime.weight_file import StoredArray


def tensor_of(weights: Weights, name: str) -> Stored:
    """A weight in memory of its own: an executable is a snapshot, and the model may be changed afterwards."""
    weight = weights[name]
    array = weights.array(weight)
    if is_packed(weight.dtype):
        return Packed(from_numpy(array), weight.dtype)
    return from_numpy(array if array.flags.owndata else array.copy())


def stored_weights(weights: Weights, used: list[Weight], store: WeightStore) -> list[StoredArray]:
    """Everything an artifact has to hold. Packed bytes are read again from where they are; the rest is in the store."""
    packed = weights.copy()
    packed.keep({weight.name for weight in used if is_packed(weight.dtype)})
    return [_packed_array(packed, w) if is_packed(w.dtype) else _plain_array(store, w) for w in used]


def _packed_array(weights: Weights, weight: Weight) -> StoredArray:
    shape = FORMATS[weight.dtype].packed_shape([int(str(size)) for size in weight.shape])
    return StoredArray(weight.name, shape, "u8", partial(weights.array, weight))


def _plain_array(store: WeightStore, weight: Weight) -> StoredArray:
    def array() -> Array:
        return to_numpy(store.fetch(weight.name))

    return StoredArray(weight.name, tuple(int(str(size)) for size in weight.shape), weight.dtype, array)


def declared(program: Program, used: list[Weight]) -> Program:
    """The program as text needs it: its weights declared, without the arrays of the model they came from."""
    weights = Weights()
    for weight in used:
        weights.add(weight.name, weight.tensor)
    return Program(program.name, program.graphs, weights, program.sizes, program.relations, program.meta)
