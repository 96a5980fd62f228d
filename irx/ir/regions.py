"""Regions: bodies of `fusion` nodes, each a graph of ordinary nodes that all fusions that compute the same share.

A body is never changed once a fusion has it. Its weights are inputs, so that equal layers share it; the locations of
its nodes are those of the first layer, and are moved to the fusion's own layer where a body is put in a fusion's place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from irx.ir.graph import Graph, Loc, Node, Value
from irx.ir.program import Program


def body_of(node: Node) -> Graph | None:
    """The body of a fusion, None for any other node."""
    body = node.attrs.get("body")
    return body if isinstance(body, Graph) else None


def regions(program: Program) -> list[Graph]:
    """The bodies of all fusions, each once, in order of first use."""
    nodes = (node for graph in program.graphs.values() for node in graph.nodes)
    return list(dict.fromkeys(body for node in nodes if (body := body_of(node)) is not None))


def flat_nodes(graph: Graph) -> Iterator[Node]:
    """The nodes that a graph runs: those of the body in place of a fusion."""
    for node in graph.nodes:
        body = body_of(node)
        yield from [node] if body is None else body.nodes


def inline(graph: Graph, fusion: Node) -> list[Node]:
    """Put a fusion's body in its place; returns the new nodes."""
    body = body_of(fusion)
    assert body is not None, f"{fusion!r} is no fusion"
    mapping: dict[Value, Value] = {
        inner: value for inner, value in zip(body.inputs, fusion.inputs, strict=True) if value is not None
    }
    origin = last_place(body)
    made = []
    for node in body.nodes:
        copy = graph.add_copy(node, mapping, before=fusion)
        copy.loc = moved(node.loc, origin, fusion.loc)
        mapping.update(zip(node.outputs, copy.outputs, strict=True))
        made.append(copy)
    for old, inner in zip(fusion.outputs, body.outputs, strict=True):
        graph.replace(old, mapping[inner])
    graph.erase(fusion)
    return made


def expanded(graph: Graph) -> Graph:
    """The graph without fusions: a copy in which bodies stand in their places, itself where it has none."""
    if all(body_of(node) is None for node in graph.nodes):
        return graph
    copy = graph.clone()
    for node in list(copy.nodes):
        if body_of(node) is not None:
            inline(copy, node)
    return copy


def last_place(body: Graph) -> Loc:
    """The location of a body's last node, which is that of the fusion it was made for."""
    return next((node.loc for node in body.reversed_nodes), Loc())


def moved(loc: Loc, origin: Loc, place: Loc) -> Loc:
    """`loc` in the layer of `place` instead of that of `origin`.

    >>> moved(Loc("layers.0.mlp.up"), Loc("layers.0.mlp"), Loc("layers.7.mlp")).module
    'layers.7.mlp.up'
    """
    old, new, parts = (text.split(".") for text in (origin.module, place.module, loc.module))
    depth = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), None)
    if depth is None or parts[: depth + 1] != old[: depth + 1]:
        return loc
    return replace(loc, module=".".join([*new[: depth + 1], *parts[depth + 1 :]]))
