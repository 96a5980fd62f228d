"""Named sizes of a program: which are declared, which a graph uses, and which its inputs determine."""

from __future__ import annotations

from collections.abc import Iterator

from irx.errors import VerifyError
from irx.ir.dims import Dim, Range, SymDim, names, parse_dim
from irx.ir.graph import Graph, Literal, Node
from irx.ir.program import Program
from irx.ir.spelling import RESERVED
from irx.ir.types import TensorType, Type


def dims_of(type: Type) -> tuple[Dim, ...]:
    """The extents of a tensor, or the capacity of a KV state where it has one."""
    if isinstance(type, TensorType):
        return type.shape
    return () if type.capacity is None else (type.capacity,)


def used_sizes(graph: Graph) -> dict[str, str]:
    """Every named size of the graph's types, literals and attributes, with the first place that uses it."""
    found: dict[str, str] = {}
    for value in graph.inputs:
        _note(found, dims_of(value.type), f"%{value.name}")
    for node in graph.nodes:
        _note(found, _dims(node), repr(node))
    return found


def bound_sizes(program: Program, graph: Graph) -> set[str]:
    """Named sizes whose values follow from the graph's inputs, with the help of the program's relations."""
    unknown = [names(dim) for value in graph.inputs for dim in dims_of(value.type)]
    unknown += [_relation_names(relation) for relation in program.relations]
    bound: set[str] = set()
    growing = True
    while growing:
        solved = {name for group in unknown if len(group - bound) == 1 for name in group - bound}
        bound |= solved
        growing = bool(solved)
    return bound


def check_declared(program: Program) -> None:
    """Verifier rule 5."""
    for name, range in program.sizes.items():
        if not name.isidentifier() or name in RESERVED:
            raise VerifyError(5, f"no size can be named {name!r}")
        if not _is_sound(range):
            raise VerifyError(5, f"the range of size {name} is empty or does not hold its hint: {range}")
    for graph in program.graphs.values():
        for name, place in used_sizes(graph).items():
            if name not in program.sizes:
                raise VerifyError(5, f"size {name} is not declared", where=f"@{graph.name}: {place}")


def check_bound(program: Program, graph: Graph) -> None:
    """Verifier rule 6."""
    bound = bound_sizes(program, graph)
    for name, place in used_sizes(graph).items():
        if name not in bound:
            raise VerifyError(6, f"size {name} cannot be read off the graph's inputs", where=f"@{graph.name}: {place}")


def _is_sound(range: Range) -> bool:
    filled = range.low >= 0 and (range.high is None or range.low <= range.high)
    return filled and (range.hint is None or range.hint in range)


def _note(found: dict[str, str], dims: Iterator[Dim] | tuple[Dim, ...], place: str) -> None:
    for dim in dims:
        if isinstance(dim, SymDim):
            for name in names(dim):
                found.setdefault(name, place)


def _dims(node: Node) -> Iterator[Dim]:
    for value in node.outputs:
        yield from dims_of(value.type)
    for operand in node.inputs:
        if isinstance(operand, Literal) and isinstance(operand.value, SymDim):
            yield operand.value
    yield from _attribute_dims(tuple(node.attrs.values()))


def _attribute_dims(value: object) -> Iterator[Dim]:
    if isinstance(value, SymDim):
        yield value
    elif isinstance(value, TensorType):
        yield from value.shape
    elif isinstance(value, Graph):
        for node in value.nodes:
            yield from _dims(node)
    elif isinstance(value, tuple):
        for part in value:
            yield from _attribute_dims(part)


def _relation_names(relation: str) -> frozenset[str]:
    """The sizes that an equation speaks of; none for a relation of another kind, which determines nothing."""
    left, equals, right = relation.partition("==")
    if not equals:
        return frozenset()
    try:
        return names(parse_dim(left.strip())) | names(parse_dim(right.strip()))
    except ValueError as error:
        raise VerifyError(5, f"relation {relation!r} is not an equation of sizes") from error
