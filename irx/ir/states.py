"""Verifier rule 9: KV states are used linearly, so that a backend may update them in place."""

from __future__ import annotations

import re

from irx.errors import VerifyError
from irx.ir.codes import is_code
from irx.ir.graph import Graph, Node, Value
from irx.ir.regions import body_of
from irx.ir.types import KVType, is_float

_WORD = re.compile(r"[\w.-]+")


def check_states(graph: Graph) -> None:
    """Raises VerifyError where a state is replaced twice, read after it was replaced, or returned all the same."""
    replaced: dict[Value, Node] = {}
    for value in graph.inputs:
        _check_words(graph, value)
    for node in graph.nodes:
        for state in _states(node.inputs):
            if state in replaced:
                by = f"{replaced[state]!r} has replaced it"
                raise VerifyError(9, f"KV state %{state.name} is used after {by}", where=f"@{graph.name}: {node!r}")
        replaced.update((state, node) for state in replaced_states(node))
        for value in node.outputs:
            _check_words(graph, value)
    for value in _states(tuple(graph.outputs)):
        if value in replaced:
            raise VerifyError(9, f"KV state %{value.name} is returned, but was replaced", where=f"@{graph.name}")


def replaced_states(node: Node) -> list[Value]:
    """The KV states that a node takes and gives the next one of, as `kv_append` does; a fusion where its body does."""
    taken = _states(node.inputs)
    body = body_of(node)
    if body is not None:
        inside = {state for inner in body.nodes for state in replaced_states(inner)} if taken else set()
        return [s for inner, s in zip(body.inputs, node.inputs, strict=True) if inner in inside and s is not None]
    return taken if _states(node.outputs) and not node.op.copies_state else []


def _states(values: tuple[Value | None, ...]) -> list[Value]:
    return [value for value in values if value is not None and isinstance(value.type, KVType)]


def _check_words(graph: Graph, value: Value) -> None:
    kind = value.type
    if not isinstance(kind, KVType):
        return
    if not _WORD.fullmatch(kind.layout) or not _WORD.fullmatch(kind.shared_with or "-"):
        raise VerifyError(9, f"the layout or sharer of {kind} is no plain word", where=f"@{graph.name}: %{value.name}")
    if kind.code is not None and (not is_code(kind.code) or not is_float(kind.dtype)):
        raise VerifyError(9, f"{kind} has no known code of floats", where=f"@{graph.name}: %{value.name}")
