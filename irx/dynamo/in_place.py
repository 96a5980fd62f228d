"""Writes into the caller's memory done where they are, for the backend that runs functions of torch.

A static cache is an argument into which a step writes one row. As a value, the write copies the whole cache, and the
result has to be copied back; where nothing else reads the argument, the write itself can go into its memory:

    %kv = irx.scatter(%keys, %index, %row) {axis=2} : f32[2, 8, 4096, 64]
    return ..., keys_after=%kv

becomes a call of aten.scatter_, which returns %keys itself.
"""

from __future__ import annotations

from collections.abc import Iterable

from irx.ir.graph import Builder, Graph, Literal, Node, Value
from irx.ir.opdef import Attr, Operand


def write_in_place(graph: Graph, outputs: Iterable[str]) -> set[str]:
    """Turn those of the `outputs`, new contents of inputs, that are one scatter into writes. Returns their names."""
    values = dict(zip(graph.output_names, graph.outputs, strict=True))
    found = {name: values[name].producer for name in outputs}
    changed = {name: node for name, node in found.items() if node is not None and _is_last_reader(graph, node)}
    for node in dict.fromkeys(changed.values()):
        graph.replace(node.output, _written(graph, node))
        graph.erase(node)
    return set(changed)


def _is_last_reader(graph: Graph, node: Node) -> bool:
    """True for a scatter of a tensor into an input that nothing else reads."""
    if node.op.name != "scatter":
        return False
    target, index, source = node.inputs
    assert target is not None and index is not None and source is not None
    alone = graph.users(target) == (node,) and not graph.is_output(target)
    fits = not isinstance(source, Literal) and source.type == target.tensor.with_shape(*index.shape)
    return target in graph.inputs and alone and fits


def _written(graph: Graph, node: Node) -> Value:
    b = Builder(graph, before=node)
    target, index, source = node.inputs
    assert target is not None and index is not None
    axis = node.attr("axis")
    assert isinstance(axis, int)
    index = b("cast", index, dtype="i64")
    index = b("where", b("lt", index, 0), b("add", index, target.shape[axis]), index)  # counted from the end
    arguments = (("self", Operand(0)), ("dim", axis), ("index", Operand(1)), ("src", Operand(2)))
    attrs: dict[str, Attr] = {
        "target": "aten.scatter_.src",
        "args": (),
        "kwargs": arguments,
        "results": (target.tensor,),
    }
    return b("torch.call", target, index, source, **attrs)
