"""The KV states of attention that does not run: removed from `prefill` and `decode`, and from what the program says.

Where only decode leaves attention out, prefill still computes it, but keeps nothing: it attends to the tokens of its
own call.

    %kv = irx.kv_append(%kv3, %k, %v, %pos)               before
    %y = irx.kv_attention(%q, %kv, %pos) {scale=0.125}

    %m = irx.reshape(%seen) {shape=[B, 1, 1, S]}          after: %seen is %pos >= 0, which padding is not
    %y = irx.attention(%q, %k, %v, %m) {scale=0.125, causal=true}
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from irx.analysis.blocks import Unit
from irx.ir.graph import Builder, Graph, Node, Value
from irx.ir.program import Program
from irx.rewrite.cleanup import erase_unused

_CACHED = ("prefill", "decode")


def drop_states(program: Program, names: Iterable[str]) -> list[str]:
    """Remove those of the named states that are written and never read, from every graph; returns their names."""
    graphs = [program.graphs[name] for name in _CACHED if name in program.graphs]
    dropped = [name for name in dict.fromkeys(names) if all(_unread(graph, name) for graph in graphs)]
    for graph in graphs:
        _remove(graph, dropped)
    if "cache" in program.meta:
        program.meta["cache"] = [entry for entry in program.meta["cache"] if entry["state"] not in dropped]
    return dropped


def drop_encoded(program: Program) -> None:
    """Remove what the encoder computes for attention that no graph has any more."""
    graphs = [program.graphs[name] for name in _CACHED if name in program.graphs]
    encode = program.graphs.get("encode")
    if encode is None:
        return
    kept: dict[str, Value] = {}
    for name, value in zip(encode.output_names, encode.outputs, strict=True):
        inputs = [(graph, given) for graph in graphs for given in graph.inputs if given.name == name]
        if any(graph.users(given) or graph.is_output(given) for graph, given in inputs):
            kept[name] = value
            continue
        for graph, given in inputs:
            graph.inputs.remove(given)
    encode.set_outputs(kept)
    erase_unused(encode, list(encode.reversed_nodes))
    program.meta["encoder_outputs"] = list(kept)


def needs_cache(unit: Unit) -> str | None:
    """Why attention cannot run on the tokens of its own call alone, in prefill; None where it can."""
    for node in _reads(unit):
        append = _append(node)
        if append is None or append.inputs[0] not in unit.states:
            return "it reads the keys of another layer"
        if node.operand("table") is not None or not node.attr("causal"):
            return "its bias is a table of distances, or it is not causal"
        k, v = append.inputs[1:3]
        assert k is not None and v is not None
        if k.shape[:3] != v.shape[:3] or k.dtype != node.output.dtype:
            return f"keys {k.type} and values {v.type} do not fit plain attention"
    return None


def attend_within_call(graph: Graph, unit: Unit, by: str) -> None:
    """Let the unit's attention read the keys and values of this call instead of its state."""
    for node in _reads(unit):
        append = cast(Node, _append(node))
        k, v = append.inputs[1:3]
        b = Builder(graph, before=node, loc=node.loc.touched(by))
        operands: list[Value | None] = [node.inputs[0], k, v, _seen(b, cast(Value, node.operand("pos")))]
        sinks = node.operand("sinks")
        operands += [None, sinks] if sinks is not None else []
        attrs: dict[str, Any] = {name: node.attr(name) for name in ("scale", "window", "softcap")}
        graph.replace(node.output, b("attention", *operands, causal=True, **attrs))
        graph.erase(node)


def _seen(b: Builder, pos: Value) -> Value:
    """bool [B, 1, 1, S]: which tokens of the call are no padding."""
    batch, length = pos.shape
    return b("reshape", b("ge", pos, 0), shape=(batch, 1, 1, length))


def _reads(unit: Unit) -> list[Node]:
    return [node for node in unit.nodes if node.op.name == "kv_attention"]


def _append(node: Node) -> Node | None:
    state = node.operand("kv")
    producer = state.producer if state is not None else None
    return producer if producer is not None and producer.op.name == "kv_append" else None


def _unread(graph: Graph, name: str) -> bool:
    """True where the graph does nothing with a state but to add tokens and give it back."""
    value = next((value for value in graph.inputs if value.name == name), None)
    while value is not None:
        users = graph.users(value)
        if not users:
            return True
        if len(users) > 1 or users[0].op.name != "kv_append" or graph.is_output(value):
            return False
        value = users[0].output
    return True


def _remove(graph: Graph, names: list[str]) -> None:
    outputs = dict(zip(graph.output_names, graph.outputs, strict=True))
    gone = [outputs.pop(name) for name in names if name in outputs]
    graph.set_outputs(outputs)
    erase_unused(graph, [value.producer for value in gone if value.producer is not None])
    graph.inputs = [value for value in graph.inputs if value.name not in names]
