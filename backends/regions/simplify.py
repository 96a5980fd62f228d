"""Ops that stand for several: norms and softmax as the elementwise ops and reductions that they are made of.

The parts are float32 whatever the dtype of the whole: kernels round only what they store.
"""

from __future__ import annotations

from collections.abc import Callable

from irx.ir.graph import Graph, Node, Operand, Value
from irx.ir.opdef import Attr, lookup
from irx.ir.types import TensorType

Parts = Callable[["Builder", Node, Value], Value]


class Builder:
    """Adds nodes in front of one whose results are float32, but for the last."""

    def __init__(self, graph: Graph, node: Node) -> None:
        self.graph, self.node = graph, node

    def __call__(self, op: str, *inputs: Operand, **attrs: Attr) -> Value:
        """A node with a float32 result."""
        operands = [v.type if isinstance(v, Value) else _weak(v) for v in inputs]
        (type,) = lookup(op).types(operands, attrs)
        assert isinstance(type, TensorType)
        return self.graph.add(op, inputs, attrs, before=self.node, types=[type.with_dtype("f32")]).output


def _weak(value: object) -> TensorType:
    return TensorType((), "float_" if isinstance(value, float) else "int_")


def simplified(body: Graph) -> tuple[Graph, dict[Value, Value]]:
    """A copy of the body made of simple ops, and the body's inputs and outputs by those of the copy."""
    copy = body.clone()
    outer = dict(zip(copy.inputs, body.inputs, strict=True))
    for node in list(copy.nodes):
        parts = PARTS.get(node.op.name)
        if parts is None:
            continue
        x = node.inputs[0]
        assert x is not None
        result = parts(Builder(copy, node), node, x)
        result.type = node.output.type  # the whole's own dtype, without a rounding: what stores it rounds
        copy.replace(node.output, result)
        copy.erase(node)
    outer.update(zip(copy.outputs, body.outputs, strict=True))
    return copy, outer


def _rms_norm(b: Builder, node: Node, x: Value) -> Value:
    total = b("mean", b("mul", x, x), axes=(-1,), keepdims=True)
    scale = b("rsqrt", b("add", total, _float(node, "eps")))
    weight = node.operand("weight")
    y = b("mul", x, scale)
    return y if weight is None else b("mul", y, weight)


def _layer_norm(b: Builder, node: Node, x: Value) -> Value:
    centred = b("sub", x, b("mean", x, axes=(-1,), keepdims=True))
    variance = b("mean", b("mul", centred, centred), axes=(-1,), keepdims=True)
    y = b("mul", centred, b("rsqrt", b("add", variance, _float(node, "eps"))))
    for op, operand in (("mul", node.operand("weight")), ("add", node.operand("bias"))):
        y = y if operand is None else b(op, y, operand)
    return y


def _softmax(b: Builder, node: Node, x: Value) -> Value:
    e = b("exp", b("sub", x, b("amax", x, axes=_axis(node), keepdims=True)))
    return b("mul", e, b("reciprocal", b("sum", e, axes=_axis(node), keepdims=True)))


def _log_softmax(b: Builder, node: Node, x: Value) -> Value:
    shifted = b("sub", x, b("amax", x, axes=_axis(node), keepdims=True))
    return b("sub", shifted, b("log", b("sum", b("exp", shifted), axes=_axis(node), keepdims=True)))


def _logsumexp(b: Builder, node: Node, x: Value) -> Value:
    axes = node.attr("axes")
    top = b("amax", x, axes=axes, keepdims=True)
    shift = b("mul", top, 0.0)
    finite = b.graph.add("eq", (shift, 0.0), before=b.node).output  # infinite times 0 is nan
    shift = b("where", finite, top, 0.0)
    total = b("add", b("log", b("sum", b("exp", b("sub", x, shift)), axes=axes, keepdims=True)), shift)
    return total if node.attr("keepdims") else b("reshape", total, shape=node.output.shape)


def _axis(node: Node) -> tuple[int, ...]:
    axis = node.attr("axis")
    assert isinstance(axis, int)
    return (axis,)


def _float(node: Node, name: str) -> float:
    value = node.attr(name)
    assert isinstance(value, int | float)
    return float(value)


PARTS: dict[str, Parts] = {
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "logsumexp": _logsumexp,
}
