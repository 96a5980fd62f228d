"""Runs captured programs on the oracle, for comparison with the model itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from irx.analysis.reference import evaluate
from irx.frontends.torch_export.tensors import as_array
from irx.ir.graph import Node
from irx.ir.opdef import Array, Operand
from irx.ir.program import Program
from irx.ir.types import is_float


def run(program: Program, inputs: Mapping[str, torch.Tensor], graph: str = "forward") -> dict[str, Array]:
    """The outputs of one graph by name."""
    arrays = {name: as_array(value) for name, value in inputs.items()}
    chosen = program.graphs[graph]
    results = evaluate(chosen, arrays, {}, program.weights, _call)
    return dict(zip(chosen.output_names, results, strict=True))


def largest_error(made: Mapping[str, Array], expected: Mapping[str, torch.Tensor]) -> float:
    """max|made - expected| / max|expected| over all outputs, which must be the same ones with the same shapes."""
    assert set(expected) <= set(made), (set(expected), set(made))
    worst = 0.0
    for name, tensor in expected.items():
        wanted = tensor.double().numpy()
        assert made[name].shape == wanted.shape, (name, made[name].shape, wanted.shape)
        finite = np.isfinite(wanted)
        assert np.array_equal(made[name][~finite], wanted[~finite]), name
        difference = np.abs(made[name][finite] - wanted[finite])
        if difference.size:
            worst = max(worst, float(difference.max() / max(np.abs(wanted[finite]).max(), 1e-30)))
    return worst


def _call(node: Node, operands: Sequence[Any], attrs: Mapping[str, Any]) -> list[Array]:
    """A `torch.call` node by torch itself, floats in the program's own dtype."""
    tensors = []
    for value, operand in zip(node.inputs, operands, strict=True):
        tensor = torch.from_numpy(np.ascontiguousarray(operand))
        tensors.append(tensor.float() if value is not None and is_float(value.dtype) else tensor)

    def read(attr: Any) -> Any:
        if isinstance(attr, Operand):
            return tensors[attr.index]
        if isinstance(attr, tuple):
            return [read(item) for item in attr]
        if isinstance(attr, str) and attr.startswith("torch."):
            return getattr(torch, attr.removeprefix("torch."))
        return attr

    space, name, overload = attrs["target"].split(".")
    function = getattr(getattr(getattr(torch.ops, space), name), overload)
    result = function(*read(attrs.get("args", ())), **{key: read(value) for key, value in attrs["kwargs"]})
    return [part.numpy() for part in (result if isinstance(result, (tuple, list)) else [result])]
