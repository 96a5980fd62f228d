"""How much work a node or a graph is: operations and bytes, as expressions over the named sizes.

Bytes count every operand read and every result written once, as if nothing were fused, except where an op knows that it
touches less (views move nothing, lookups read only what they return). A cache without a fixed capacity is charged for
`T` tokens. Weights that depend on nothing else, and what is computed from them alone, count like any other operand. Of
a fusion only what goes in and comes out counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from irx.ir.dims import Bindings, Dim, evaluate
from irx.ir.graph import Graph, Node, Value
from irx.ir.opdef import tensor_bytes
from irx.ir.regions import body_of
from irx.ir.types import KVType, TensorType, is_float


@dataclass(frozen=True)
class Cost:
    """Floating-point operations (a multiply-add is two) and bytes moved."""

    flops: Dim = 0
    bytes: Dim = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def at(self, bindings: Bindings) -> tuple[int, int]:
        """(flops, bytes) where every named size has a value. Raises KeyError for a size without one."""
        return evaluate(self.flops, bindings), evaluate(self.bytes, bindings)


def node_cost(node: Node) -> Cost:
    """The cost of one node."""
    body = body_of(node)
    operands = [v.type if v is not None else None for v in node.inputs]
    if body is not None:
        return Cost(node.op.flops(*operands, **node.attrs), _fused_bytes(body))
    results = [v.type for v in node.outputs]
    return Cost(node.op.flops(*operands, **node.attrs), node.op.bytes(operands, results))


def _fused_bytes(body: Graph) -> Dim:
    """What a fused region moves: its operands and results once, of tables the rows it looks up, and of KV states what
    its nodes touch. What is made and read inside moves nothing."""
    total: Dim = sum((tensor_bytes(v.tensor) for v in body.outputs if isinstance(v.type, TensorType)), start=0)
    for value in body.inputs:
        if isinstance(value.type, TensorType):
            total = total + _read_bytes(body, value)
    return total + sum((_state_bytes(node) for node in body.nodes), start=0)


def _read_bytes(body: Graph, value: Value) -> Dim:
    table = value
    readers = body.users(value)
    if len(readers) == 1 and readers[0].op.name == "dequantize":
        table, readers = readers[0].output, body.users(readers[0].output)
    if not all(node.op.name == "embedding" and node.inputs[0] is not table for node in readers):
        return tensor_bytes(value.tensor)
    return sum((tensor_bytes(value.tensor.with_shape(*node.output.shape)) for node in readers), start=0)


def _state_bytes(node: Node) -> Dim:
    """The bytes of KV states that a node reads and writes, without those of its tensors."""
    operands = [v.type for v in node.inputs if v is not None]
    results = [v.type for v in node.outputs]
    if not any(isinstance(type, KVType) for type in operands):
        return 0
    free = [t.with_dtype("float_") if isinstance(t, TensorType) else t for t in operands]
    made = [t.with_dtype("float_") if isinstance(t, TensorType) else t for t in results]
    written = [t for t in operands if isinstance(t, TensorType) and is_float(t.dtype)] if made == results else []
    return node.op.bytes(free, made) + sum(map(tensor_bytes, written), start=0)


def graph_cost(graph: Graph) -> Cost:
    """The sum over all nodes of a graph."""
    return total(node_cost(node) for node in graph.nodes)


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of costs."""
    return sum(costs, Cost())
