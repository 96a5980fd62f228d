"""States that do not hold all tokens: where a token lies is told to kernels beside its position.

Before:

    graph @decode(%pos: i64[B, 1], %kv0: kv<heads=3, dim=64, blocked, f32, kept=0.2>, ...) -> (...) {
      %kv = irx.kv_append(%kv0, %k, %v, %pos)
      %y = irx.kv_attention(%q, %kv, %pos) {scale=0.125}

After:

    graph @decode(%pos: i64[B, 1], %kv0: kv<...>, ..., %slots_kv0: i64[B, 1]) -> (...) {
      %kv = irx.kv_append(%kv0, %k, %v, %pos, %slots_kv0)
      %y = irx.kv_attention(%q, %kv, %pos, _, _, %slots_kv0) {scale=0.125}

Kernels put a token into its slot and attend to all slots up to it. That is right because a state keeps its tokens in
order and whatever is appended is newer than them (`irx.runtime.kv_kept`), so nothing has to compare positions. Where a
state is a ring (`irx.runtime.kv_ring`), a token takes the place of another, and all slots in use are seen: attention
gets an input of its own, `%seen_kv0`. Where the graph itself chooses the tokens that go on, how many there are is known
before the call, and so are their slots; which ones they were becomes one more output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from irx.ir.graph import Graph, Node, Value
from irx.ir.types import KVType

_PLACES = {"kv_append": 4, "kv_attention": 5}  # which operand the slots are


@dataclass(frozen=True)
class Slots:
    """An input of slots: the indices of its state, and of the positions that go into it.

    It says where tokens are, or with `read` up to which slot they see, where that is another than their own. Of tokens
    that the graph has `chosen`, `positions` is the index of the output that tells which.
    """

    state: int
    positions: int
    read: bool = False
    chosen: bool = False


@dataclass(frozen=True)
class Placed:
    """A graph whose last inputs are slots, and whose last `told` outputs are positions of tokens that it chose."""

    graph: Graph
    slots: tuple[Slots, ...] = ()
    told: int = 0

    @staticmethod
    def of(graph: Graph) -> Placed:
        """The graph with slots for every state that may lose tokens; itself where there is none."""
        found = [v for v in graph.inputs if isinstance(v.type, KVType) and _moves(v.type)]
        return _Placing(graph.clone(), [graph.inputs.index(v) for v in found]).run() if found else Placed(graph)


@dataclass
class _Placing:
    """Adds slots to a graph, and to copies of the bodies of its fusions."""

    graph: Graph
    states: list[int]
    _bodies: dict[tuple[Graph, int, int], Graph] = field(default_factory=dict)

    def run(self) -> Placed:
        graph, slots, outputs = self.graph, list[Slots](), len(self.graph.outputs)
        for index in self.states:
            state = graph.inputs[index]
            pos = appended(graph).get(state)
            if pos is not None and pos not in graph.inputs:
                slots += self._chosen(state, index, pos)
            if pos is None or pos not in graph.inputs:
                continue
            place = graph.inputs.index(pos)
            given = seen = graph.add_input(f"slots_{state.name}", pos.type)
            slots.append(Slots(index, place))
            if isinstance(state.type, KVType) and state.type.window is not None:
                seen = graph.add_input(f"seen_{state.name}", pos.type)
                slots.append(Slots(index, place, read=True))
            self._tell(graph, state, {"kv_append": given, "kv_attention": seen})
        return Placed(graph, tuple(slots), len(graph.outputs) - outputs)

    def _chosen(self, state: Value, index: int, pos: Value) -> list[Slots]:
        """The slots of tokens that the graph chooses, of positions `pos`; none of a ring, where places are taken."""
        graph = self.graph
        if isinstance(state.type, KVType) and state.type.window is not None:
            return []
        if pos not in graph.outputs:
            named = dict(zip(graph.output_names, graph.outputs, strict=True))
            graph.set_outputs({**named, f"positions_{state.name}": pos})
        given = graph.add_input(f"slots_{state.name}", pos.type)
        self._tell(graph, state, {"kv_append": given, "kv_attention": given})
        return [Slots(index, graph.outputs.index(pos), chosen=True)]

    def _tell(self, graph: Graph, state: Value, slots: Mapping[str, Value]) -> None:
        """Tell all nodes that append to a state or attend to it."""
        for node in graph.users(state):
            if node.op.name in _PLACES:
                place = _PLACES[node.op.name]
                graph.set_inputs(node, (*node.inputs, *[None] * (place - len(node.inputs)), slots[node.op.name]))
            elif node.op.name == "fusion":
                self._fusion(graph, node, state, slots)
            for value in node.outputs:
                if isinstance(value.type, KVType) and root_of(node, value) is state:
                    self._tell(graph, value, slots)

    def _fusion(self, graph: Graph, node: Node, state: Value, slots: Mapping[str, Value]) -> None:
        body = node.attrs["body"]
        assert isinstance(body, Graph)
        index = node.inputs.index(state)
        key = (body, index, len(node.inputs))
        if key not in self._bodies:
            copy = body.clone()
            inner = {value: copy.add_input("slots", value.type) for value in dict.fromkeys(slots.values())}
            self._tell(copy, copy.inputs[index], {op: inner[value] for op, value in slots.items()})
            self._bodies[key] = copy
        node.attrs["body"] = self._bodies[key]
        graph.set_inputs(node, (*node.inputs, *dict.fromkeys(slots.values())))


def _moves(kv: KVType) -> bool:
    """True for states whose slots may be other numbers than the positions of their tokens."""
    return kv.kept is not None or kv.prefix or kv.window is not None


def root_of(node: Node, value: Value) -> Value | None:
    """The operand of a node whose state one of its results is."""
    if node.op.name != "fusion":
        return next(v for v in node.inputs if v is not None and isinstance(v.type, KVType))
    body = node.attrs["body"]
    assert isinstance(body, Graph)
    inner = body.outputs[node.outputs.index(value)]
    while inner.producer is not None:
        inner = next(v for v in inner.producer.inputs if v is not None and isinstance(v.type, KVType))
    return node.inputs[body.inputs.index(inner)]


def appended(graph: Graph) -> dict[Value, Value]:
    """By state input, the positions of what is appended to it."""
    found: dict[Value, Value] = {}
    roots: dict[Value, Value] = {value: value for value in graph.inputs}
    for node in graph.nodes:
        if node.op.name == "fusion":
            body = node.attrs["body"]
            assert isinstance(body, Graph)
            outer = dict(zip(body.inputs, node.inputs, strict=True))
            for inside, at in appended(body).items():
                state, position = outer[inside], outer[at]
                assert state is not None and position is not None
                found[roots[state]] = position
        elif node.op.name == "kv_append":
            state, position = node.inputs[0], node.inputs[3]
            assert state is not None and position is not None
            found[roots[state]] = position
        for value in node.outputs:
            root = root_of(node, value) if isinstance(value.type, KVType) else None
            if root in roots:
                roots[value] = roots[root]
    return found
