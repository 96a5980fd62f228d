"""What a model computes on the data, reduced to what passes on weights need: the RMS of every channel of a value.

Second moments of the inputs of a product say which of its columns matter: with independent channels the mean square of
an output's error is the sum of the squared errors of its weights, each times its channel's mean square.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from irx.analysis.calibration import FORWARD, Calibration
from irx.errors import UnboundWeight
from irx.ir.blocks import unpack
from irx.ir.graph import Value, Weight
from irx.ir.opdef import Array
from irx.ir.program import Program
from irx.ir.types import is_packed
from irx.ir.weights import Weights
from irx.passes.weights.uses import Matrix

Key = TypeVar("Key")


def channel_rms(calibration: Calibration, program: Program, wanted: Mapping[Key, Sequence[Value]]) -> dict[Key, Array]:
    """For every key the root mean square `[K]` of the last axis of its values of `forward`, over all data; float64."""
    values = list(dict.fromkeys(value for group in wanted.values() for value in group))
    if not values:
        return {}
    places = {value: index for index, value in enumerate(values)}
    sums: dict[Key, Array] = {key: np.zeros(int(str(group[0].shape[-1]))) for key, group in wanted.items() if group}
    counts = dict.fromkeys(sums, 0)
    for arrays in calibration.values(program, values):
        rows = [array.reshape(-1, array.shape[-1]).astype(np.float64) for array in arrays]
        squares = [np.einsum("nk,nk->k", row, row) for row in rows]
        for key in sums:
            for value in wanted[key]:
                sums[key] += squares[places[value]]
                counts[key] += len(rows[places[value]])
    return {key: np.sqrt(total / max(1, counts[key])) for key, total in sums.items()}


def product_inputs(matrices: Sequence[Matrix]) -> dict[Weight, list[Value]]:
    """The inputs of the linears of `forward` that read each matrix."""
    found: dict[Weight, list[Value]] = {}
    for matrix in matrices:
        uses = [use for use in matrix.uses if use.graph.name == FORWARD and use.node.op.name == "linear"]
        inputs = [use.node.inputs[0] for use in uses]
        if inputs:
            found[matrix.weight] = [value for value in inputs if value is not None]
    return found


def floats(weights: Weights, weight: Weight) -> Array | None:
    """The elements of a weight as float32, unpacked; None for one without an array."""
    try:
        array = weights.array(weight)
    except UnboundWeight:
        return None
    return unpack(array, weight.dtype) if is_packed(weight.dtype) else np.asarray(array, dtype=np.float32)
