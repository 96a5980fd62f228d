"""Convolutions: rows are gathered for the kernels of linears; filters in groups are computed directly."""

from __future__ import annotations

from dataclasses import replace

from irx.backends.regions.lowered import (
    Binding,
    Call,
    Case,
    Choices,
    Data,
    Lowered,
    PackedPart,
    Refusal,
    Temporary,
    single,
)
from irx.backends.tvm.layouts.stacked import Flattened
from irx.backends.tvm.layouts.tiles import Tiles
from irx.backends.tvm.rules import linear
from irx.backends.tvm.templates.conv import gather_call, turn_call
from irx.backends.tvm.templates.conv_direct import direct_call
from irx.backends.tvm.templates.conv_shape import Convolution, convolution
from irx.ir.dims import Dim
from irx.ir.graph import Builder, Graph, Value
from irx.ir.types import TensorType, numpy_dtype

_OPS = ("conv1d", "conv2d")


def rule(body: Graph, choices: Choices) -> Lowered | None:
    """Kernels for a body of one convolution; None without one. Raises Refusal for what else is in the body."""
    found = [node for node in body.nodes if node.op.name in _OPS]
    if not found:
        return None
    if len(body) != 1:
        raise Refusal("a convolution together with other ops")
    conv = convolution(found[0])
    return single(direct_call(conv)) if conv.groups > 1 else _by_product(conv, choices)


def _by_product(conv: Convolution, choices: Choices) -> Lowered:
    """The calls of a linear over the patches, between gathering them and turning the result."""
    size = numpy_dtype(conv.dtype).itemsize
    patches = Temporary("conv_patches", conv.rows * (conv.columns * size))
    sums = Temporary("conv_sums", conv.rows * (conv.filters * size))
    graph, operands = _linear(conv)
    lowered = linear.rule(graph, choices)
    assert lowered is not None
    actual: dict[Value, Binding] = {operands["x"]: patches, graph.outputs[0]: sums}
    if conv.bias is not None:
        actual[operands["bias"]] = Data(conv.bias)
    first, last = gather_call(conv, patches), turn_call(conv, sums)
    cases = [(case, [_bound(call, conv, actual) for call in case.calls]) for case in lowered.cases]
    return Lowered(tuple(Case((first, *calls, last), case.size, case.most) for case, calls in cases))


def _linear(conv: Convolution) -> tuple[Graph, dict[str, Value]]:
    """A body of the product alone, and its inputs by name."""
    graph = Graph("conv")
    types: dict[str, tuple[Dim, ...]] = {"x": (conv.rows, conv.columns), "weight": (conv.filters, conv.columns)}
    if conv.bias is not None:
        types["bias"] = (conv.filters,)
    operands = {name: graph.add_input(name, TensorType(shape, conv.dtype)) for name, shape in types.items()}
    graph.set_outputs({"y": Builder(graph)("linear", *operands.values())})
    return graph, operands


def _bound(call: Call, conv: Convolution, actual: dict[Value, Binding]) -> Call:
    """The call with the convolution's buffers for those of the product."""
    return replace(call, bindings={name: _binding(b, conv, actual) for name, b in call.bindings.items()})


def _binding(binding: Binding, conv: Convolution, actual: dict[Value, Binding]) -> Binding:
    if isinstance(binding, Data):
        return actual[binding.value]
    if not isinstance(binding, PackedPart):
        return binding
    assert isinstance(binding.layout, Tiles)
    shape = tuple(size for size in conv.weight.shape if isinstance(size, int))
    return PackedPart(Flattened(binding.layout, shape), (conv.weight,), binding.part)
