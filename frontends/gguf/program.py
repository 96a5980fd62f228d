"""From a captured model to a program over the file's own weights: packed ones stay packed, nothing is requantized.

Capture sees float32 parameters without elements. Each becomes the weight as the file stores it, under the same name,
and what read the parameter reads its float32 values:

    before   %y = irx.linear(%x, $model.layers.0.mlp.up_proj.weight)          the weight is f32[1536, 576], unbound

    after    %w = irx.dequantize($model.layers.0.mlp.up_proj.weight)          the weight is q4_1[1536, 576], the file's
             %y = irx.linear(%x, %w)
"""

from __future__ import annotations

from collections.abc import Mapping

from irx.frontends.gguf.weights import StoredWeight
from irx.ir.graph import Graph, Node, Value, Weight
from irx.ir.program import Program
from irx.ir.types import TensorType, is_packed
from irx.ir.weights import Weights


def bind_program(program: Program, stored: Mapping[str, StoredWeight]) -> None:
    """Give every parameter of a captured program its weight from the file, in place.

    `program` is fresh from capture of `GgufModel.module`: no weight is derived, and those of the model have its names.
    Weights that are not in `stored` (rotary tables, other buffers) stay as they are.
    """
    weights = Weights()
    replacements: dict[Weight, Weight] = {}
    for entry in program.weights:
        old = entry.weight
        weight = stored.get(old.name)
        if weight is None:
            replacements[old] = weights.add(old.name, old.tensor, entry.load)
        else:
            replacements[old] = weights.add(old.name, TensorType(weight.shape, weight.dtype), weight.load)
    program.weights = weights
    for graph in program.graphs.values():
        _replace(graph, replacements)


def _replace(graph: Graph, replacements: Mapping[Weight, Weight]) -> None:
    """Let the graph read the new weights, each converted once, before its first reader."""
    converted: dict[Weight, Value] = {}
    for node in graph.nodes:
        for value in node.inputs:
            if isinstance(value, Weight) and value in replacements and value not in converted:
                converted[value] = _as_float32(graph, replacements[value], value.dtype, node)
                graph.replace(value, converted[value])


def _as_float32(graph: Graph, weight: Weight, dtype: str, before: Node) -> Value:
    if weight.dtype == dtype:
        return weight
    op = "dequantize" if is_packed(weight.dtype) else "cast"
    return graph.add(op, [weight], {"dtype": dtype}, before=before).output
