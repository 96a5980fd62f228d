"""Questions about the structure of a graph: what is constant, which nodes lie between values, are two graphs alike."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from irx.ir.dims import names as size_names
from irx.ir.graph import Graph, Literal, Node, Value, Weight
from irx.ir.spelling import format_value
from irx.ir.types import TensorType

_CONSTANT_NODES = 32  # a constant expression larger than this is not worth recognising by walking it


def is_constant(value: Value | None) -> bool:
    """True when the value is a weight or literal, or a small pure expression of those that knows no named size."""
    pending, visited = [value], 0
    while pending:
        item = pending.pop()
        if item is None or isinstance(item, Weight | Literal):
            continue
        visited += 1
        node = item.producer
        if node is None or not node.op.pure or not is_static(item) or visited > _CONSTANT_NODES:
            return False
        pending += node.inputs
    return True


def is_static(value: Value) -> bool:
    """True for a tensor without named sizes in its shape."""
    return isinstance(value.type, TensorType) and not any(size_names(dim) for dim in value.type.shape)


def between(outputs: Sequence[Value], leaves: Collection[Value]) -> list[Node]:
    """The nodes that compute `outputs` from `leaves`, operands first. Graph inputs and weights end the walk as well."""
    found: dict[Node, None] = {}
    pending = [(value.producer, False) for value in reversed(outputs) if value not in leaves]
    while pending:
        node, ready = pending.pop()
        if node is None or node in found:
            continue
        if ready:
            found[node] = None
            continue
        pending.append((node, True))
        pending += [(v.producer, False) for v in reversed(node.inputs) if v is not None and v not in leaves]
    return list(found)


def extract(outputs: Sequence[Value], leaves: Collection[Value], names: dict[Value, str]) -> Graph:
    """The part of a graph between `leaves` and `outputs` as a graph of its own, in which weights are inputs too.

    `names` gives inputs their names and is added to, so that two parts over the same values agree.
    """
    part = Graph("part")
    nodes = between(outputs, leaves)
    mapping: dict[Value, Value] = {}
    for value in _frontier(nodes, outputs):
        name = names.setdefault(value, f"x{len(names)}")
        mapping[value] = part.add_input(name, value.type)
    for node in nodes:
        mapping.update(zip(node.outputs, part.add_copy(node, mapping).outputs, strict=True))
    part.set_outputs({f"y{index}": mapping.get(value, value) for index, value in enumerate(outputs)})
    return part


def _frontier(nodes: Sequence[Node], outputs: Sequence[Value]) -> Iterator[Value]:
    inside = {value for node in nodes for value in node.outputs}
    read = [value for node in nodes for value in node.inputs]
    for value in dict.fromkeys([*read, *outputs]):
        if value is not None and value not in inside and not isinstance(value, Literal):
            yield value


def fingerprint(graph: Graph) -> str:
    """A text that is equal for two graphs exactly when they differ in names and locations only."""
    numbers: dict[Value, str] = {}
    lines = []
    for value in graph.inputs:
        numbers[value] = f"%{len(numbers)}"
        lines.append(f"{numbers[value]}: {value.type}")
    for node in graph.nodes:
        operands = ", ".join(_operand(value, numbers) for value in node.inputs)
        numbers.update((value, f"%{len(numbers) + i}") for i, value in enumerate(node.outputs))
        types = ", ".join(str(value.type) for value in node.outputs)
        lines.append(f"{node.op.name}({operands}) {attributes(node)} : {types}")
    lines.append(", ".join(_operand(value, numbers) for value in graph.outputs))
    return "\n".join(lines)


def attributes(node: Node) -> str:
    """All attributes of a node with their defaults filled in, as text; equal texts mean equal attributes."""
    return ", ".join(f"{name}={format_value(value)}" for name, value in node.op.complete(node.attrs).items())


def _operand(value: Value | None, numbers: dict[Value, str]) -> str:
    if value is None:
        return "none"
    if isinstance(value, Literal):
        return format_value(value.value)
    return numbers.get(value) or f"${value.name}"
