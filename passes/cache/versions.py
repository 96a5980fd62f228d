"""The states of a program: what each becomes in every graph, who reads it, and another type for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from irx.ir.graph import Graph, Loc, Node, Value
from irx.ir.program import Program
from irx.ir.regions import body_of
from irx.ir.types import KVType
from irx.pipeline.base import Context, NearMiss, Report, Site


def states_of(graph: Graph) -> list[Value]:
    """The KV states that a graph takes."""
    return [value for value in graph.inputs if isinstance(value.type, KVType)]


def versions(graph: Graph, state: Value) -> Iterator[Value]:
    """A state and what it becomes, one after the other, through fusions as well."""
    yield state
    for node in graph.users(state):
        for value in _next_versions(node, state):
            yield from versions(graph, value)


def given_as(node: Node, body: Graph, value: Value) -> list[Value]:
    """The inputs of a fusion's body that stand for a value."""
    return [own for own, given in zip(body.inputs, node.inputs, strict=True) if given is value]


def _next_versions(node: Node, state: Value) -> list[Value]:
    """What a node makes of a state; the body of a fusion tells which of its states that is."""
    body = body_of(node)
    if body is None:
        return [value for value in node.outputs if isinstance(value.type, KVType)]
    later = {version for own in given_as(node, body, state) for version in versions(body, own)}
    return [outer for own, outer in zip(body.outputs, node.outputs, strict=True) if own in later]


def users(graph: Graph, state: Value) -> list[Node]:
    """The nodes that read any version of a state, in order."""
    found = {node for value in versions(graph, state) for node in graph.users(value)}
    return [node for node in graph.nodes if node in found]


def fused(graph: Graph, state: Value) -> bool:
    """True where a fusion reads a state: its body would have to change with it."""
    return any(body_of(node) is not None for node in users(graph, state))


def retype(program: Program, name: str, change: Callable[[KVType], KVType]) -> None:
    """Give the state of a name another type in all graphs; nothing but states may depend on it."""
    for graph in program.graphs.values():
        for state in (value for value in states_of(graph) if value.name == name):
            for value in versions(graph, state):
                assert isinstance(value.type, KVType), "a state stays a state"
                value.type = change(value.type)


def retype_all(
    program: Program,
    ctx: Context,
    obstacle: Callable[[Graph, Value], str | None],
    change: Callable[[KVType], KVType],
    what: str,
) -> Report:
    """Give every state another type in all graphs, a site each; where there is an obstacle in any, a near miss."""
    found = [(graph, state) for graph in program.graphs.values() for state in states_of(graph)]
    report = Report(note="" if found else "there is no cache")
    for name in dict.fromkeys(state.name for _, state in found):
        own = [(graph, state) for graph, state in found if state.name == name]
        graph, state = own[0]
        place = next((node.loc for node in users(graph, state)), Loc())
        reason = next((reason for g, s in own if (reason := obstacle(g, s)) is not None), None)
        if reason is not None:
            report.near_misses.append(NearMiss(graph.name, place, reason))
        elif ctx.fuel.take():
            retype(program, name, change)
            report.sites.append(Site(graph.name, place, what))
    return report


def counterparts(cached: Graph, readers: list[Node], plain: Graph) -> list[Node] | None:
    """The attention of a graph without a cache that is that of `readers`; None where it cannot be told.

    Sites are the same by their place in the model, and by their order among those of one place.
    """
    found = []
    for node in readers:
        there = [n for n in cached.nodes if n.op.name == "kv_attention" and n.loc.module == node.loc.module]
        here = [n for n in plain.nodes if n.op.name == "attention" and n.loc.module == node.loc.module]
        if len(there) != len(here):
            return None
        found.append(here[there.index(node)])
    return found
