"""The attention layers of a program: one node in `forward`, and the node in each graph with a cache that stands for it.

A program that was changed must stay one function in all its graphs, so passes change a layer in all of them or not at
all. Layers are paired by their module path where that is unique, else by their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from irx.ir.graph import Graph, Node, Value
from irx.ir.program import Program

CACHED = ("prefill", "decode")


@dataclass(frozen=True)
class AttentionSite:
    """One layer of self-attention: its `attention` in `forward`, and its `kv_attention` by graph."""

    node: Node
    cached: Mapping[str, Node] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Where in the model it is."""
        return self.node.loc.module or f"%{self.node.output.name}"

    def operand(self, name: str) -> Value:
        """An operand of the node in `forward` that is always there."""
        value = self.node.operand(name)
        assert value is not None, f"{self.node!r} has no {name}"
        return value

    def state(self, graph: str) -> Value:
        """The KV state that the layer reads in a graph, its own new tokens included."""
        value = self.cached[graph].operand("kv")
        assert value is not None, f"{self.cached[graph]!r} reads no state"
        return value


def attention_sites(program: Program) -> tuple[list[AttentionSite], str]:
    """The layers in order of execution; or none, and the reason."""
    nodes = [node for node in _nodes(program.graphs.get("forward"), "attention") if _attends_to_itself(node)]
    cached = {name: _nodes(program.graphs[name], "kv_attention") for name in CACHED if name in program.graphs}
    if not nodes:
        return [], "there is no attention of tokens to each other"
    if not cached:
        return [AttentionSite(node) for node in nodes], ""
    paths = {name: [node.loc.module for node in found] for name, found in cached.items()}
    order = [node.loc.module for node in nodes]
    if all(len(set(found)) == len(found) and set(found) <= set(order) for found in (*paths.values(), order)):
        by_path = {name: {node.loc.module: node for node in found} for name, found in cached.items()}
        return _by_path(nodes, by_path), ""
    if all(len(found) == len(nodes) for found in cached.values()):
        pairs = zip(nodes, *cached.values(), strict=True)
        return [AttentionSite(node, dict(zip(cached, rest, strict=True))) for node, *rest in pairs], ""
    counts = ", ".join(f"{len(found)} in {name}" for name, found in cached.items())
    return [], f"{len(nodes)} layers in forward, but {counts}: they cannot be paired"


def _by_path(nodes: Sequence[Node], cached: Mapping[str, Mapping[str, Node]]) -> list[AttentionSite]:
    """Layers without a cache, as those of an encoder, are left out."""
    inside = [node for node in nodes if all(node.loc.module in found for found in cached.values())]
    return [AttentionSite(n, {name: found[n.loc.module] for name, found in cached.items()}) for n in inside]


def _nodes(graph: Graph | None, op: str) -> list[Node]:
    return [node for node in graph.nodes if node.op.name == op] if graph is not None else []


def _attends_to_itself(node: Node) -> bool:
    q, k = node.operand("q"), node.operand("k")
    return q is not None and k is not None and q.shape[2] == k.shape[2]


def unlike(leader: AttentionSite, follower: AttentionSite) -> str:
    """Why one layer cannot attend with what another has prepared; empty where it can."""
    for name in ("q", "k", "v"):
        ours, theirs = follower.operand(name).type, leader.operand(name).type
        if ours != theirs:
            return f"its {name} is {ours}, not {theirs}"
    for name in ("causal", "window"):
        if follower.node.attr(name) != leader.node.attr(name):
            return f"it has {name}={follower.node.attr(name)}, not {leader.node.attr(name)}"
    if follower.node.operand("mask") is not leader.node.operand("mask"):
        return "it has another mask"
    if _angles(follower.operand("k")) != _angles(leader.operand("k")):
        return "its keys are rotated otherwise"
    for graph in follower.cached:
        if follower.state(graph).type != leader.state(graph).type:
            return f"in {graph} its cache is {follower.state(graph).type}, not {leader.state(graph).type}"
    return ""


def _angles(keys: Value) -> object:
    """What decides how keys are rotated, besides their positions; None for keys that are not."""
    node = keys.producer
    if node is None or node.op.name != "rope":
        return None
    return node.inputs[2:], tuple(sorted(node.attrs.items()))
