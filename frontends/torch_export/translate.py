"""An ATen graph as an IRX graph, one operator at a time; nothing is recognised here.

The entry for graphs that do not come from `torch.export`, as those of Dynamo:

    translation = translate(graph_module, weights={"l_self_weight": ("weight", parameter)})

Every placeholder that is not given as a weight becomes an input of the graph (a tensor) or a named size (an integer).
Types are checked against what torch found while tracing, so that a wrong rule cannot pass unnoticed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

import irx.ops  # noqa: F401  (declares the operations)
from irx.errors import ExportFailed
from irx.frontends.torch_export.complex_numbers import complex_constant
from irx.frontends.torch_export.nodes import Translator
from irx.frontends.torch_export.sizes import Sizes
from irx.frontends.torch_export.tensors import WeightTable, constant, dtype_name
from irx.ir.dims import Dim
from irx.ir.graph import Graph, Value, Weight
from irx.ir.program import Program
from irx.ir.types import TensorType
from irx.ir.weights import Weights


@dataclass
class Translation:
    """A translated graph and how its inputs and outputs map to the traced one's.

    `inputs` has an entry per placeholder: the IR input's name, None for a weight, or the dim of an integer. `outputs`
    has one per traced output: the IR output's name, a dim, or a plain constant. `mutated` maps names of inputs the
    graph writes into to the outputs that hold their new contents (after the traced ones).
    """

    graph: Graph
    weights: Weights
    sizes: Sizes
    inputs: list[str | Dim | None] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    mutated: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def program(self, name: str, limits: Mapping[str, int | None] | None = None) -> Program:
        """The translation as a program with this one graph."""
        return Program(
            name,
            {self.graph.name: self.graph},
            self.weights,
            self.sizes.ranges(limits or {}),
            self.sizes.relations(),
            {"notes": list(self.notes)},
        )


def translate(
    module: fx.GraphModule,
    *,
    weights: Mapping[str, tuple[str, torch.Tensor]] | None = None,
    names: Mapping[str, str] | None = None,
    axes: Mapping[str, Mapping[int, str]] | None = None,
    constants: Mapping[str, Any] | None = None,
    outputs: Sequence[str] | None = None,
    graph_name: str = "forward",
) -> Translation:
    """Translate an ATen graph whose nodes carry `meta["val"]`, as `make_fx` and `torch.export` leave it.

    `weights` says which placeholders are weights: name and tensor. `names` renames inputs. `axes` names the sizes of
    inputs' axes (inputs named there share sizes of one name). `constants` gives values for placeholders that are no
    inputs at all, `outputs` names for tensor results. Raises ExportFailed for what cannot be kept even as a
    `torch.call`.
    """
    sizes = Sizes()
    table = WeightTable(Weights())
    graph = Graph(graph_name)
    result = Translation(graph, table.weights, sizes)
    binder = _Binder(result, table, weights or {}, names or {}, axes or {}, constants or {})
    translator = Translator(graph, table, sizes)
    returned = translator.run(module, binder.bind(module))
    _name_outputs(result, returned, outputs)
    for placeholder, value in translator.written_placeholders().items():
        _add_mutation(result, binder.bound[placeholder], value)
    remove_dead(graph)
    result.notes = translator.notes
    used = {value.name for value in _weights_used(graph)}
    table.weights.keep(used)
    return result


@dataclass
class _Binder:
    """Turns placeholders into inputs, weights, sizes and constants."""

    result: Translation
    table: WeightTable
    weights: Mapping[str, tuple[str, torch.Tensor]]
    names: Mapping[str, str]
    axes: Mapping[str, Mapping[int, str]]
    constants: Mapping[str, Any]
    bound: dict[fx.Node, Any] = field(default_factory=dict)

    def bind(self, module: fx.GraphModule) -> dict[fx.Node, Any]:
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        # Sizes are named before any type is made: an integer placeholder may come before the tensor it is a size of.
        for node in placeholders:
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor) and node.name not in self.weights:
                name = self.names.get(node.name, node.name)
                axes = self.axes.get(node.name)
                self.result.sizes.name_axes(name, value.shape, axes or {}, shared=axes is not None)
        for node in placeholders:
            self.bound[node] = self._value(node)
        return self.bound

    def _value(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        if node.name in self.constants:
            self.result.inputs.append(None)
            given = self.constants[node.name]
            is_tensor = isinstance(given, torch.Tensor)
            return constant(self.result.graph, self.table, node.name, given) if is_tensor else given
        if node.name in self.weights:
            self.result.inputs.append(None)
            name, tensor = self.weights[node.name]
            if tensor.is_complex():
                return complex_constant(self.result.graph, self.table, name, tensor)
            return self.table.add(name, tensor)
        if isinstance(value, torch.Tensor):
            kind = TensorType(self.result.sizes.shape(value.shape), dtype_name(value.dtype))
            made = self.result.graph.add_input(self.names.get(node.name, node.name), kind)
            self.result.inputs.append(made.name)
            return made
        if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
            size = self.result.sizes.dim(value)
            self.result.inputs.append(size)
            return size
        if value is None or isinstance(value, (bool, float, str)):
            self.result.inputs.append(None)
            return value
        raise ExportFailed(f"input {node.name!r} is a {type(value).__name__}; inputs are tensors and integers")


def _name_outputs(result: Translation, returned: Sequence[Any], wanted: Sequence[str] | None) -> None:
    tensors = sum(isinstance(value, Value) for value in returned)
    names = iter(wanted or (["output"] if tensors == 1 else [f"output_{i}" for i in range(tensors)]))
    outputs: dict[str, Value] = {}
    for value in returned:
        if isinstance(value, Value):
            outputs[name := next(names)] = value
            result.outputs.append(name)
        else:
            result.outputs.append(value)
    result.graph.set_outputs(outputs)


def _add_mutation(result: Translation, target: Any, value: Value) -> None:
    if not isinstance(target, Value) or target not in result.graph.inputs:
        raise ExportFailed(f"the model writes into its own weight {target!r}", fix="make forward leave its state alone")
    name = f"{target.name}_after"
    result.mutated[target.name] = name
    graph = result.graph
    graph.set_outputs(dict(zip([*graph.output_names, name], [*graph.outputs, value], strict=True)))


def remove_dead(graph: Graph) -> None:
    """Drop what no output depends on: the checks and by-products that tracing leaves behind."""
    for node in graph.reversed_nodes:
        if graph.is_unused(node):
            graph.erase(node)


def _weights_used(graph: Graph) -> list[Weight]:
    used = [value for node in graph.nodes for value in node.inputs if value is not None]
    return [value for value in (*used, *graph.outputs) if isinstance(value, Weight)]
