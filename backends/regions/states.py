"""The KV states of one call: where their arrays are, and room for the tokens the call appends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from irx.ir.graph import Graph, Value
from irx.ir.types import KVType
from irx.runtime.kv import KVState, step_of

_UNLIMITED = 1 << 40


class States:
    """Which inputs of a graph are states, and which positions input says where their new tokens go."""

    def __init__(self, graph: Graph) -> None:
        self.indices = [i for i, value in enumerate(graph.inputs) if isinstance(value.type, KVType)]
        appended = _appended(graph)
        found = [(i, appended[graph.inputs[i]]) for i in self.indices if graph.inputs[i] in appended]
        self._known = all(position in graph.inputs for _, position in found)
        self._appending = [(i, graph.inputs.index(position)) for i, position in found if position in graph.inputs]

    def make_room(self, inputs: Sequence[Any]) -> bool:
        """Room for the tokens of a call in all states it appends to; False where kernels cannot follow a state.

        Kernels take states whose slots are their tokens in order, to which a call appends without leaving holes.
        """
        if any(inputs[i].positions is not None for i in self.indices):
            return False
        needed, last = 0, None
        for i, position in self._appending:
            state: KVState = inputs[i]
            step = state.step or step_of(state.lengths, inputs[position].tolist())
            if step is None:
                return False
            if step is not last:
                last, needed = step, step.needed
            if needed > step.room:
                state.reserve(needed, _UNLIMITED)
            state.lengths = step.lengths
        return self._known


def _appended(graph: Graph) -> dict[Value, Value]:
    """The positions input of every state input that something is appended to."""
    found: dict[Value, Value] = {}
    roots: dict[Value, Value] = {v: v for v in graph.inputs}
    for node in graph.nodes:
        if node.op.name == "fusion":
            body = node.attrs["body"]
            assert isinstance(body, Graph)
            outer = dict(zip(body.inputs, node.inputs, strict=True))
            inner = _appended(body)
            for inside, at in inner.items():
                actual, position = outer[inside], outer[at]
                assert actual is not None and position is not None
                found[roots[actual]] = position
            results = zip(body.outputs, node.outputs, strict=True)
            roots |= {new: roots[found_] for out, new in results if (found_ := _state(out, outer)) in roots}
        elif node.op.name == "kv_append":
            state, pos = node.inputs[0], node.inputs[3]
            assert state is not None and pos is not None
            found[roots[state]] = pos
            roots[node.output] = roots[state]
    return found


def _state(value: Value, outer: dict[Value, Value | None]) -> Value | None:
    """The fusion's operand whose state a body's value is."""
    if not isinstance(value.type, KVType):
        return None
    while value.producer is not None:
        value = next(v for v in value.producer.inputs if v is not None and isinstance(v.type, KVType))
    return outer[value]
