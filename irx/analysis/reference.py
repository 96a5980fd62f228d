"""The oracle: what a graph computes, evaluated with the ops' numpy references in float64.

Linears and attention are evaluated row by row in a fixed order, so that a result does not depend on how many rows are
computed together. Weights are loaded when a node needs them and lifted one at a time; the large ones of the streamed
operands (`OpDef.streamed`) are lifted piece by piece, and block-quantized ones are unpacked only where they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from irx.analysis.inputs import bind_sizes
from irx.analysis.precision import holds
from irx.errors import InputMismatch, NoReference
from irx.ir.blocks import unpack
from irx.ir.dims import Bindings, SymDim
from irx.ir.dims import evaluate as evaluate_dim
from irx.ir.graph import Graph, Literal, Node, Value, Weight
from irx.ir.opdef import Array, as_float64
from irx.ir.regions import body_of
from irx.ir.types import TensorType, is_float, is_packed, numpy_dtype
from irx.ir.weights import Weights
from irx.ops.cache import KVArrays

Call: TypeAlias = Callable[[Node, Sequence[Any], Mapping[str, Any]], Sequence[Array]]
"""Runs a `torch.call` node: `call(node, operands, attrs)` gives its results; sizes in `attrs` are ints."""


def evaluate(
    graph: Graph,
    inputs: Mapping[str, Any],
    bindings: Bindings,
    weights: Weights,
    call: Call | None = None,
    *,
    round_casts: bool = True,
) -> list[Any]:
    """The outputs of `graph`: arrays, floats as float64, and KVArrays for KV states.

    `inputs` holds an array (or KVArrays) by the name of every input. Named sizes come from `bindings` and from the
    inputs' shapes. A cast to a narrower float rounds, unless `round_casts` is False: then floats are never rounded, as
    when a rewrite that moves a cast is checked for the function it computes.

    Raises InputMismatch for inputs that do not fit, NoReference for a `torch.call` node when `call` is None.
    """
    sizes = bind_sizes(graph, inputs, bindings)
    known = {value: lift(inputs[value.name]) for value in graph.inputs}
    return _Evaluation(graph, weights, sizes, call, round_casts).run(graph.outputs, known)


def evaluate_values(
    graph: Graph,
    targets: Sequence[Value],
    bindings: Bindings,
    weights: Weights,
    known: Mapping[Value, Any] | None = None,
    call: Call | None = None,
) -> list[Any]:
    """The values `targets` of `graph`, evaluating only the nodes they need, as for masks and position tables.

    `known` gives values that are not to be computed. Raises InputMismatch when a target depends on an input of the
    graph that is not among them.
    """
    lifted = {value: lift(array) for value, array in (known or {}).items()}
    return _Evaluation(graph, weights, dict(bindings), call, True).run(targets, lifted)


def lift(value: Any) -> Any:
    """An array with floats as float64; the arrays of a KV state likewise."""
    if isinstance(value, KVArrays):
        k, v = as_float64(np.asarray(value.k)), as_float64(np.asarray(value.v))
        return replace(value, k=k, v=v, positions=np.asarray(value.positions))
    return as_float64(np.asarray(value))


@dataclass(frozen=True)
class PackedRows:
    """A block-quantized weight that is unpacked where it is indexed: what streamed operands need of an array."""

    raw: Array
    format: str
    dtype: str

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, rows: Any) -> Array:
        return np.asarray(unpack(self.raw[rows], self.format).astype(numpy_dtype(self.dtype), copy=False))


@dataclass(frozen=True)
class _Evaluation:
    graph: Graph
    weights: Weights
    sizes: Bindings
    call: Call | None
    round_casts: bool
    weights_inside: Mapping[Value, Weight] = field(default_factory=dict)  # inputs of a body that stand for weights

    def run(self, targets: Sequence[Value], known: Mapping[Value, Any]) -> list[Any]:
        found = dict(known)
        nodes = _needed(self.graph, targets, {**known, **self.weights_inside})
        for node, finished in zip(nodes, _last_uses(nodes, targets), strict=True):
            found.update(zip(node.outputs, self._node(node, found), strict=True))
            for value in finished:
                found.pop(value, None)
        return [self._operand(value, found, streamed=False) for value in targets]

    def _node(self, node: Node, found: Mapping[Value, Any]) -> Sequence[Any]:
        body = body_of(node)
        if body is not None:
            return self._fusion(node, body, found)
        attrs = {name: resolve(attr, self.sizes) for name, attr in node.attrs.items()}
        if node.op.name == "dequantize":
            return [self._dequantize(node, attrs, found)]
        narrow = self._narrow_weight(node)
        if narrow is not None:
            return [self.weights.array(narrow)]
        operands = [
            None if v is None else self._operand(v, found, streamed=_is_streamed(node, i))
            for i, v in enumerate(node.inputs)
        ]
        if node.op.name == "cast" and is_float(node.output.dtype) and not self._rounds(node):
            return [np.asarray(operands[0], dtype=np.float64)]
        with np.errstate(all="ignore"):
            results = self._apply(node, operands, attrs)
        return [r if isinstance(r, PackedRows) else lift(r) for r in results]

    def _fusion(self, node: Node, body: Graph, found: Mapping[Value, Any]) -> Sequence[Any]:
        pairs = [(inner, value) for inner, value in zip(body.inputs, node.inputs, strict=True) if value is not None]
        weights = {inner: value for inner, value in pairs if isinstance(value, Weight)}
        known = {inner: found[value] for inner, value in pairs if inner not in weights}
        return replace(self, graph=body, weights_inside=weights).run(body.outputs, known)

    def _narrow_weight(self, cast: Node) -> Weight | None:
        """The weight that `cast` widens, where that is only read piece by piece: its readers lift the pieces."""
        value = cast.inputs[0] if cast.op.name == "cast" else None
        if value is None or not is_float(value.dtype) or not holds(cast.output.dtype, value.dtype):
            return None
        source = self.weights_inside.get(value, value)
        return source if isinstance(source, Weight) and _only_streamed(self.graph, cast.output) else None

    def _rounds(self, cast: Node) -> bool:
        """True unless all values of the operand's dtype fit the result's."""
        source = cast.inputs[0]
        widens = source is not None and is_float(source.dtype) and holds(cast.output.dtype, source.dtype)
        return self.round_casts and not widens

    def _apply(self, node: Node, operands: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Any]:
        if node.op.name == "torch.call":
            if self.call is None:
                raise NoReference(str(node.attr("target")), where=str(node.loc))
            return self.call(node, operands, attrs)
        result = node.op.reference(*operands, **attrs)
        return result if isinstance(result, tuple) else (result,)

    def _dequantize(self, node: Node, attrs: Mapping[str, Any], found: Mapping[Value, Any]) -> Any:
        weight = node.inputs[0]
        if weight is None:
            raise InputMismatch("nothing to dequantize", where=str(node.loc))
        weight = self.weights_inside.get(weight, weight)
        raw = self.weights.array(weight) if isinstance(weight, Weight) else found[weight]
        rows = PackedRows(raw, weight.dtype, attrs.get("dtype", "f32"))
        return rows if _only_streamed(self.graph, node.output) else as_float64(rows[:])

    def _operand(self, value: Value, found: Mapping[Value, Any], *, streamed: bool) -> Any:
        if isinstance(value, Literal):
            return resolve(value.value, self.sizes)
        value = self.weights_inside.get(value, value)
        if not isinstance(value, Weight):
            return found[value]
        array = self.weights.array(value)
        return array if streamed or is_packed(value.dtype) else as_float64(array)


def resolve(attr: Any, sizes: Bindings) -> Any:
    """An attribute with every size, also inside tuples and types, replaced by its int."""
    if isinstance(attr, SymDim):
        return evaluate_dim(attr, sizes)
    if isinstance(attr, tuple):
        return tuple(resolve(item, sizes) for item in attr)
    if isinstance(attr, TensorType):
        return attr.with_shape(*resolve(attr.shape, sizes))
    return attr


def _needed(graph: Graph, targets: Iterable[Value], known: Mapping[Value, Any]) -> list[Node]:
    """The nodes that compute the targets, in order."""
    wanted = {value for value in targets if value not in known}
    nodes: list[Node] = []
    for node in graph.reversed_nodes:
        if wanted.isdisjoint(node.outputs):
            continue
        nodes.append(node)
        wanted.difference_update(node.outputs)
        wanted.update(v for v in node.inputs if v is not None and v not in known)
    free = [v.name for v in graph.inputs if v in wanted]
    if free:
        raise InputMismatch(f"the values asked for depend on the graph's inputs {', '.join(free)}")
    return nodes[::-1]


def _last_uses(nodes: Sequence[Node], targets: Iterable[Value]) -> list[list[Value]]:
    """For each node the values that nothing after it reads."""
    alive = set(targets)
    finished: list[list[Value]] = []
    for node in reversed(nodes):
        last = {v for v in (*node.inputs, *node.outputs) if v is not None and v not in alive}
        finished.append(list(last))
        alive |= last
    return finished[::-1]


def _is_streamed(node: Node, index: int) -> bool:
    return index < len(node.op.operands) and node.op.operands[index].name in node.op.streamed


def _only_streamed(graph: Graph, value: Value) -> bool:
    """True when every reader takes the value piece by piece."""
    reads = [_is_streamed(node, i) for node in graph.users(value) for i, v in enumerate(node.inputs) if v is value]
    return all(reads) and not graph.is_output(value)
