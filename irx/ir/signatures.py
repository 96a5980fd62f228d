"""Verifier rule 10: what goes into and comes out of graphs that hand KV states to each other."""

from __future__ import annotations

from irx.errors import VerifyError
from irx.ir.graph import Graph
from irx.ir.program import Program
from irx.ir.types import KVType, TensorType, Type


def inputs_of(graph: Graph) -> dict[str, Type]:
    """The types of the graph's inputs by name."""
    return {value.name: value.type for value in graph.inputs}


def outputs_of(graph: Graph) -> dict[str, Type]:
    """The types of the graph's results by name."""
    return {name: value.type for name, value in zip(graph.output_names, graph.outputs, strict=True)}


def check_signatures(program: Program) -> None:
    """Raises VerifyError where a state would not fit the call that takes it next."""
    for graph in program.graphs.values():
        _check_returned(graph)
    if "prefill" not in program.graphs or "decode" not in program.graphs:
        return
    prefill, decode = program.graphs["prefill"], program.graphs["decode"]
    first, second = _states(inputs_of(prefill)), _states(inputs_of(decode))
    if list(first.items()) != list(second.items()):
        raise VerifyError(10, f"@prefill takes the KV states {_list(first)}, but @decode takes {_list(second)}")
    _check_written(prefill, decode)
    _check_alike("input", inputs_of(prefill), inputs_of(decode))
    _check_alike("result", outputs_of(prefill), outputs_of(decode))


def _check_returned(graph: Graph) -> None:
    taken = _states(inputs_of(graph))
    if not taken:
        return
    for name, kind in _states(outputs_of(graph)).items():
        if name not in taken:
            raise VerifyError(
                10, f"the KV state {name!r} is returned, but none of that name is taken", where=_at(graph)
            )
        if taken[name] != kind:
            raise VerifyError(
                10, f"KV state {name!r} comes in as {taken[name]} and goes out as {kind}", where=_at(graph)
            )


def _check_written(prefill: Graph, decode: Graph) -> None:
    """A state that one graph fills and the other does not would have holes."""
    for name in sorted(_written(prefill) ^ _written(decode)):
        does, other = ("prefill", "decode") if name in _written(prefill) else ("decode", "prefill")
        raise VerifyError(10, f"@{does} writes to the KV state {name!r}, and @{other} gives it back as it came")


def _written(graph: Graph) -> set[str]:
    """The states that the graph does not give back as they came in."""
    taken = {value.name: value for value in graph.inputs if isinstance(value.type, KVType)}
    given = zip(graph.output_names, graph.outputs, strict=True)
    return {name for name, value in given if name in taken and value is not taken[name]}


def _check_alike(kind: str, prefill: dict[str, Type], decode: dict[str, Type]) -> None:
    for name in prefill.keys() & decode.keys():
        if _form(prefill[name]) != _form(decode[name]):
            raise VerifyError(10, f"{kind} {name!r} is {prefill[name]} in @prefill, but {decode[name]} in @decode")


def _form(type: Type) -> object:
    """What must agree: lengths may differ, as decode handles one token at a time."""
    return (type.dtype, type.rank) if isinstance(type, TensorType) else type


def _states(types: dict[str, Type]) -> dict[str, KVType]:
    return {name: type for name, type in types.items() if isinstance(type, KVType)}


def _list(states: dict[str, KVType]) -> str:
    return ", ".join(f"{name}: {type}" for name, type in states.items()) or "none"


def _at(graph: Graph) -> str:
    return f"@{graph.name}"
