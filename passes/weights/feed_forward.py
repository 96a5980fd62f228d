"""Where a program has feed-forward networks: products, an activation of their channels, one product back.

    %gate = irx.linear(%x, $gate)        or one linear for both, taken apart by slices,
    %up = irx.linear(%x, $up)            or one linear and a plain activation
    %h = irx.swiglu(%gate, %up)
    %y = irx.linear(%h, $down)
    %out = irx.add(%residual, %y)

Found by structure: between the products only elementwise nodes may stand, so that channel i depends on row i of what
comes in and is read by column i of what goes out, and the result must end in a residual stream. One network is one unit
in all graphs, known by its weights.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from irx.analysis.structure import between
from irx.ir.graph import Graph, Loc, Node, Value, Weight
from irx.ir.program import Program
from irx.passes.fuse.projections import Projection, projection
from irx.rewrite.report import NearMiss

_NORMS = ("rms_norm", "layer_norm")
_STEPS = 8  # nodes between the product and its residual add


@dataclass(frozen=True)
class Incoming:
    """A product whose columns `start` to `start` + width are the channels before the activation."""

    product: Projection
    start: int


@dataclass(frozen=True)
class Place:
    """One network in one graph: `incoming` by the values they end in, the nodes between, and the way back.

    `residual` is what its result is added to, `out` the sum.
    """

    graph: Graph
    down: Projection
    incoming: dict[Value, Incoming]
    inner: list[Node]
    residual: Value
    out: Value

    @property
    def key(self) -> tuple[Weight, ...]:
        """The weights that make it the same network in every graph."""
        return (self.down.weight, *(one.product.weight for one in self.incoming.values()))


@dataclass
class Network:
    """A feed-forward network with all places where it is used."""

    places: list[Place] = field(default_factory=list)

    @property
    def down(self) -> Weight:
        """The matrix `[D, F]` of the product back."""
        return self.places[0].down.weight

    @property
    def width(self) -> int:
        """How many channels it has."""
        return int(str(self.down.shape[-1]))

    @property
    def loc(self) -> Loc:
        """Where the model uses it first."""
        return self.places[0].down.node.loc


def networks(program: Program) -> tuple[list[Network], list[NearMiss]]:
    """All networks in the order of their first use, and what is none for a reason. Weights of one are read by no other
    node."""
    found: dict[tuple[Weight, ...], Network] = {}
    misses: list[NearMiss] = []
    for graph in program.graphs.values():
        for node in graph.nodes:
            place = _place(graph, node)
            if isinstance(place, Place):
                found.setdefault(place.key, Network()).places.append(place)
            elif place is not None:
                misses.append(NearMiss(graph.name, node.loc, place))
    kept = []
    for network in found.values():
        reader = _other_reader(program, network)
        if reader is None:
            kept.append(network)
        else:
            misses.append(NearMiss(network.places[0].graph.name, network.loc, reader))
    return kept, misses


def _place(graph: Graph, node: Node) -> Place | str | None:
    """The network that ends in `node`, why it cannot be sliced, or None where there is none."""
    if node.op.name == "moe":
        return "experts: their channels are not sliced"
    down = projection(node)
    if down is None or not isinstance(down.weight.shape[-1], int):
        return None
    incoming = _incoming(down.x, down.weight.shape[-1])
    if incoming is None:
        return None
    inner = between([down.x], incoming)
    reason = _read_elsewhere(graph, [*incoming, *(n.output for n in inner)], {node, *inner})
    stream = _stream(graph, node.output, down.x)
    if reason is not None or stream is None:
        return reason or "its result ends in no residual stream"
    return Place(graph, down, incoming, inner, *stream)


def _incoming(channels: Value, width: int) -> dict[Value, Incoming] | None:
    """The products behind an activation of `channels`; None where something else comes in, or nothing is between."""
    found: dict[Value, Incoming] = {}
    pending, seen = [channels], 0
    while pending:
        value = pending.pop()
        one = _product(value, width)
        if one is not None:
            found[value] = one
            continue
        node, seen = value.producer, seen + 1
        if node is None or not node.op.elementwise or value.shape[-1] != width or seen > _STEPS:
            return None
        pending += [v for v in node.inputs if v is not None and not (v.producer is None and v.shape == ())]
    return found if channels not in found else None


def _product(value: Value, width: int) -> Incoming | None:
    node, start = value.producer, 0
    if node is not None and node.op.name == "slice" and node.attr("step") == 1 and node.inputs[0] is not None:
        last = len(value.shape) - 1
        at = node.attr("start")
        if node.attr("axis") not in (last, -1) or not isinstance(at, int) or at < 0:
            return None
        node, start = node.inputs[0].producer, at
    product = projection(node)
    return Incoming(product, start) if product is not None and value.shape[-1] == width else None


def _read_elsewhere(graph: Graph, values: Collection[Value], inside: Collection[Node]) -> str | None:
    for value in values:
        if graph.is_output(value):
            return f"%{value.name} is a result of the graph as well"
        for user in graph.users(value):
            if user not in inside:
                return f"{user.op.name} reads the channels as well"
    return None


def _other_reader(program: Program, network: Network) -> str | None:
    """What reads a weight of the network beside it, in words."""
    own = {node for place in network.places for node in _readers(place)}
    for graph in program.graphs.values():
        for weight in network.places[0].key:
            for user in graph.users(weight):
                if user not in own:
                    return f"{user.op.name} reads ${weight.name} as well"
    return None


def _readers(place: Place) -> list[Node]:
    products = [place.down, *(one.product for one in place.incoming.values())]
    return [one.unpacking or one.node for one in products]


def _stream(graph: Graph, result: Value, channels: Value) -> tuple[Value, Value] | None:
    """The residual stream that `result` is added to, and the sum: the stream is what `channels` are computed from."""
    for _ in range(_STEPS):
        users = graph.users(result)
        if len(users) != 1 or graph.is_output(result) or len(users[0].outputs) != 1:
            return None
        (node,) = users
        if node.op.name == "add":
            other = next((v for v in node.inputs if v is not None and v is not result), None)
            if other is not None and other.type == node.output.type and depends(channels, other):
                return other, node.output
        elif not (node.op.elementwise or node.op.name in (*_NORMS, "reshape")) or node.inputs[0] is not result:
            return None
        result = node.output
    return None


def block_input(place: Place, outs: Collection[Value]) -> Value:
    """The residual stream before the block of a network: the sum behind the network before, else where it begins."""
    value = place.residual
    while value not in outs and value.producer is not None:
        node = value.producer
        if node.op.name in _NORMS and node.inputs[0] is not None:
            value = node.inputs[0]
            continue
        if node.op.name != "add":
            break
        first, second = (v for v in node.inputs if v is not None)
        if depends(second, first):
            value = first
        elif depends(first, second):
            value = second
        else:
            break
    return value


def depends(value: Value, on: Value) -> bool:
    """True where `value` is computed from `on`."""
    pending, seen = [value], {value}
    while pending:
        item = pending.pop()
        if item is on:
            return True
        inputs = item.producer.inputs if item.producer is not None else ()
        fresh = [v for v in inputs if v is not None and v not in seen]
        seen.update(fresh)
        pending += fresh
    return False
