"""Outlining: a set of nodes becomes one `fusion`, whose body all equal sets share.

    outliner = Outliner(program, "fuse-norm")
    fusion = outliner.outline(graph, [norm, linear], "norm-linear")

Before:

    %n = irx.rms_norm(%x, $g) {eps=1e-05} : f32[B, S, 576]
    %y = irx.linear(%n, $w) : f32[B, S, 960]

After:

    region @norm-linear.0(%p0: f32[B, S, 576], %p1: f32[576], %p2: f32[960, 576]) -> (y: f32[B, S, 960]) {
      %n = irx.rms_norm(%p0, %p1) {eps=1e-05} : f32[B, S, 576]
      %y = irx.linear(%n, %p2) : f32[B, S, 960]
      return %y
    }
    ...
    %y = irx.fusion(%x, $g, $w) {body=@norm-linear.0} : f32[B, S, 960]

The set must be convex: nothing outside may lie between two of its nodes. Fusions in the set are taken apart, so bodies
never nest. `irx.ir.regions` has the way back (`inline`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from irx.analysis.structure import between, fingerprint
from irx.ir.graph import Graph, Literal, Node, Value
from irx.ir.program import Program
from irx.ir.regions import body_of, inline, regions
from irx.ir.states import replaced_states

FUSION = "fusion"


class NotConvex(ValueError):
    """Raised for nodes that cannot be one node: something between two of them lies outside."""


@dataclass(frozen=True)
class Outline:
    """A fusion that could be made: of which nodes, what stands among them but must come after, what it takes and gives.

    `is_new` where no other fusion of the program has the body.
    """

    nodes: list[Node]
    later: list[Node]
    operands: list[Value]
    results: list[Value]
    body: Graph
    is_new: bool


class Outliner:
    """Makes fusions in the graphs of one program for the pass `by`; knows all bodies that the program has."""

    def __init__(self, program: Program, by: str) -> None:
        self.by = by
        self.names = {body.name for body in regions(program)}
        self.bodies = {fingerprint(body): body for body in regions(program)}

    def outline(self, graph: Graph, nodes: Collection[Node], name: str) -> Node:
        """Replace `nodes` by one fusion. Raises NotConvex and changes nothing then."""
        return self.commit(graph, self.prepare(graph, nodes, name))

    def prepare(self, graph: Graph, nodes: Collection[Node], name: str) -> Outline:
        """The fusion of `nodes`, not yet made. Raises NotConvex.

        The body is one that the program has, if an equal one exists; else a new one called `name` and a number. What
        it takes and gives, in order: what its nodes read from outside, and what of theirs is read outside.
        """
        ordered, later = _arranged(graph, nodes)
        results = _results(graph, ordered)
        made, operands = _body(ordered, results)
        body = self.bodies.setdefault(fingerprint(made), made)
        if body is made:
            body.name = next(n for i in range(len(self.names) + 1) if (n := f"{name}.{i}") not in self.names)
            self.names.add(body.name)
        return Outline(ordered, later, operands, results, body, body is made)

    def commit(self, graph: Graph, plan: Outline) -> Node:
        """Replace the nodes by the fusion, at the place of the last of them; results keep their names."""
        last, types = plan.nodes[-1], [value.type for value in plan.results]
        place = last.loc.touched(self.by)
        fusion = graph.add(FUSION, plan.operands, {"body": plan.body}, before=last, loc=place, types=types)
        for node in plan.later:
            graph.move(node, before=fusion)
        graph.move(fusion, before=plan.later[0] if plan.later else last)
        for old, new in zip(plan.results, fusion.outputs, strict=True):
            graph.replace(old, new)
        for node in reversed(plan.nodes):
            graph.erase(node)
        for old, new in zip(plan.results, fusion.outputs, strict=True):
            old.name, new.name = new.name, old.name
        return fusion


def convex(graph: Graph, nodes: Collection[Node]) -> bool:
    """True when nothing outside of `nodes` lies between two of them, so that they can become one fusion."""
    try:
        _arranged(graph, nodes)
    except NotConvex:
        return False
    return True


def _arranged(graph: Graph, nodes: Collection[Node]) -> tuple[list[Node], list[Node]]:
    """The nodes in order, and what stands among them but must come after them."""
    inside, ordered, later = set(nodes), list[Node](), list[Node]()
    own, tainted = set[Value](), set[Value]()
    for node in graph.span(inside):
        if node in inside:
            if any(value in tainted for value in node.inputs):
                raise NotConvex(f"%{node.outputs[0].name} depends on the region by a way outside of it")
            own.update(node.outputs)
            ordered.append(node)
        elif any(value in own or value in tainted for value in node.inputs):
            tainted.update(node.outputs)
            later.append(node)
        else:
            _check_kept(node, ordered)
    replaced = {state for node in ordered for state in replaced_states(node)}
    for node in later:
        if any(value in replaced for value in node.inputs):
            raise NotConvex(f"%{node.outputs[0].name} reads a KV state that the region replaces")
    return ordered, later


def _check_kept(node: Node, ordered: Sequence[Node]) -> None:
    """What comes before the region must not replace a KV state that the region reads."""
    replaced = replaced_states(node)
    if replaced and any(value in replaced for inner in ordered for value in inner.inputs):
        raise NotConvex(f"%{node.outputs[0].name} replaces a KV state that the region reads")


def _results(graph: Graph, nodes: Sequence[Node]) -> list[Value]:
    inside = set(nodes)
    values = [value for node in nodes for value in node.outputs]
    return [v for v in values if graph.is_output(v) or any(user not in inside for user in graph.users(v))]


def _body(nodes: Sequence[Node], results: Sequence[Value]) -> tuple[Graph, list[Value]]:
    """The graph of what `nodes` do, fusions taken apart, and the values that its inputs stand for."""
    flat, outputs = _flat(nodes, results)
    order = _order(flat, outputs)
    made = {value for node in order for value in node.outputs}
    read = dict.fromkeys(v for node in order for v in node.inputs if v is not None and not isinstance(v, Literal))
    operands = [value for value in read if value not in made]
    body = Graph("")
    mapping: dict[Value, Value] = {v: body.add_input(f"p{i}", v.type) for i, v in enumerate(operands)}
    for node in order:
        inputs = [v if v is None else mapping.get(v, v) for v in node.inputs]
        copy = body.add(node.op, inputs, node.attrs, loc=node.loc, types=[v.type for v in node.outputs])
        mapping.update(zip(node.outputs, copy.outputs, strict=True))
    body.set_outputs({mapping[value].name: mapping[value] for value in outputs})
    return body, operands


def _flat(nodes: Sequence[Node], results: Sequence[Value]) -> tuple[Graph, list[Value]]:
    """Copies of the nodes in a graph that reads the values outside as they are, without fusions; and of the results."""
    flat = Graph("")
    mapping: dict[Value, Value] = {}
    for node in nodes:
        mapping.update(zip(node.outputs, flat.add_copy(node, mapping).outputs, strict=True))
    flat.outputs = [mapping[value] for value in results]
    for node in list(flat.nodes):
        if body_of(node) is not None:
            inline(flat, node)
    return flat, list(flat.outputs)


def _order(flat: Graph, outputs: Sequence[Value]) -> list[Node]:
    """Operands before what reads them, the same for all graphs of one structure; as the nodes stand, where one of them
    replaces a KV state that another reads."""
    nodes = list(flat.nodes)
    replaced = [state for node in nodes for state in replaced_states(node)]
    contended = any(len(flat.users(state)) > 1 for state in replaced)
    return nodes if contended else between(outputs, _outside(nodes))


def _outside(nodes: Sequence[Node]) -> set[Value]:
    made = {value for node in nodes for value in node.outputs}
    return {v for node in nodes for v in node.inputs if v is not None and v not in made}
