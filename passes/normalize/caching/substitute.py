"""A graph with named sizes replaced by other sizes everywhere, and its types inferred anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from irx.ir.dims import Dim, SymDim, substitute
from irx.ir.graph import Graph, Literal, Value
from irx.ir.opdef import Attr
from irx.ir.types import KVType, TensorType, Type


def substituted(graph: Graph, sizes: Mapping[str, Dim], name: str) -> Graph:
    """A copy called `name` in which every size in inputs, attributes and literals is substituted.

    Raises TypeRuleError where an op cannot take the new sizes.
    """
    made = Graph(name)
    mapping: dict[Value, Value] = {v: made.add_input(v.name, _type(v.type, sizes)) for v in graph.inputs}
    for node in graph.nodes:
        operands = [substituted_operand(v, mapping, sizes) for v in node.inputs]
        attrs = {key: substituted_attr(attr, sizes) for key, attr in node.attrs.items()}
        names = [v.name for v in node.outputs]
        again = made.add(node.op, operands, attrs, loc=node.loc, names=names)
        mapping.update(zip(node.outputs, again.outputs, strict=True))
    made.set_outputs({n: mapping.get(v, v) for n, v in zip(graph.output_names, graph.outputs, strict=True)})
    return made


def substituted_operand(value: Value | None, mapping: Mapping[Value, Value], sizes: Mapping[str, Dim]) -> Value | None:
    """The value that stands for an operand: mapped, or a literal of the new sizes."""
    if isinstance(value, Literal) and isinstance(value.value, SymDim):
        return Literal(substitute(value.value, sizes))
    return None if value is None else mapping.get(value, value)


def substituted_attr(attr: Attr, sizes: Mapping[str, Dim]) -> Attr:
    """An attribute with named sizes replaced wherever they occur in it."""
    if isinstance(attr, SymDim):
        return substitute(attr, sizes)
    if isinstance(attr, tuple):
        return tuple(substituted_attr(item, sizes) for item in attr)
    return attr.with_shape(*(substitute(d, sizes) for d in attr.shape)) if isinstance(attr, TensorType) else attr


def _type(type: Type, sizes: Mapping[str, Dim]) -> Type:
    if isinstance(type, KVType):
        return type if type.capacity is None else replace(type, capacity=substitute(type.capacity, sizes))
    return type.with_shape(*(substitute(d, sizes) for d in type.shape))
