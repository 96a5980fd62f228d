"""Where a program reads weights as matrices, and what else reads them: what all passes on weights have to know.

A weight is changed for all of its readers or for none, in every graph: a table that is both the embedding and the LM
head stays one table. So weights are looked at one by one, each with all of its uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from irx.analysis.structure import is_constant
from irx.ir.graph import Builder, Graph, Loc, Node, Value, Weight
from irx.ir.program import Program
from irx.ir.types import is_float
from irx.rewrite.report import NearMiss

HEAD, EMBEDDING, LINEAR, EXPERTS = "head", "embed", "linear", "experts"

_OPERANDS = {"linear": ("weight",), "embedding": ("weight",), "moe": ("gate_up", "down")}
_CACHED = ("prefill", "decode")  # whose first result is the logits, whatever it is called


@dataclass(frozen=True)
class Use:
    """A node that reads a weight as a matrix (or a stack of them) in one of its operands."""

    graph: Graph
    node: Node
    index: int
    role: str


@dataclass
class Matrix:
    """A weight with everything that reads it: as a matrix, and the names of other readers."""

    weight: Weight
    uses: list[Use] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    @property
    def graph(self) -> str:
        """The first graph that reads it."""
        return self.uses[0].graph.name

    @property
    def loc(self) -> Loc:
        """Where the model uses it first."""
        return self.uses[0].node.loc

    @property
    def roles(self) -> set[str]:
        """What it is used as."""
        return {use.role for use in self.uses}

    def redirect(self, by: str, make: Callable[[Builder], Value]) -> None:
        """Let every use read what `make` builds instead: one value in each graph, before the first use there."""
        made: dict[str, Value] = {}
        for use in self.uses:
            if use.graph.name not in made:
                made[use.graph.name] = make(Builder(use.graph, use.node, use.node.loc.touched(by)))
            inputs = list(use.node.inputs)
            inputs[use.index] = made[use.graph.name]
            use.graph.set_inputs(use.node, inputs)


def matrices(program: Program) -> list[Matrix]:
    """Every float weight that some graph reads as a matrix, in the order of their first use."""
    found: dict[Weight, Matrix] = {}
    for graph in program.graphs.values():
        heads = _heads(graph)
        for node in graph.nodes:
            for index, weight, role in _reads(node, heads):
                found.setdefault(weight, Matrix(weight)).uses.append(Use(graph, node, index, role))
    for graph in program.graphs.values():
        _note_others(graph, found)
    return list(found.values())


def prepared(program: Program) -> list[NearMiss]:
    """What does not read a weight as it is stored, but what a node makes of it: no pass changes that once more.

    Reported once for every weight.
    """
    found: dict[Value, NearMiss] = {}
    for graph in program.graphs.values():
        for node in graph.nodes:
            made = [node.inputs[index] for index in _indices(node)]
            for value in (v for v in made if v is not None and v.producer is not None and is_constant(v)):
                source = value.producer.inputs[0] if value.producer is not None and value.producer.inputs else None
                found.setdefault(source or value, NearMiss(graph.name, node.loc, _made_by(value.producer, source)))
    return list(found.values())


def _made_by(node: Node | None, source: Value | None) -> str:
    name = node.op.name if node is not None else "nothing"
    if name == "dequantize" and source is not None:
        return f"already packed as {source.dtype}"
    return f"the weight is made by {name}" + (f" from {source.dtype}" if source is not None else "")


def _indices(node: Node) -> Iterator[int]:
    """The operands that hold matrices."""
    names = _OPERANDS.get(node.op.name, ())
    return (i for i, p in enumerate(node.op.operands[: len(node.inputs)]) if p.name in names)


def _reads(node: Node, heads: set[Node]) -> Iterator[tuple[int, Weight, str]]:
    role = {"linear": HEAD if node in heads else LINEAR, "embedding": EMBEDDING, "moe": EXPERTS}.get(node.op.name, "")
    for index in _indices(node):
        weight = node.inputs[index]
        if isinstance(weight, Weight) and is_float(weight.dtype):
            yield index, weight, role


def _note_others(graph: Graph, found: dict[Weight, Matrix]) -> None:
    for node in graph.nodes:
        matrix_operands = set(_indices(node))
        for index, value in enumerate(node.inputs):
            if isinstance(value, Weight) and value in found and index not in matrix_operands:
                found[value].others.append(node.op.name)
    for value in graph.outputs:
        if isinstance(value, Weight) and value in found:
            found[value].others.append("the results")


def _heads(graph: Graph) -> set[Node]:
    """The linears whose results become logits by elementwise nodes and changes of shape alone."""
    logits = [v for name, v in zip(graph.output_names, graph.outputs, strict=True) if name == "logits"]
    logits += graph.outputs[:1] if graph.name in _CACHED else []
    heads: set[Node] = set()
    pending: Sequence[Value] = logits
    seen: set[Value] = set()
    while pending:
        value, *rest = pending
        node = value.producer
        pending = rest
        if node is None or value in seen:
            continue
        seen.add(value)
        if node.op.name == "linear":
            heads.add(node)
        elif node.op.elementwise or node.op.name in ("reshape", "permute", "slice", "expand", "gather_tokens"):
            pending = [*rest, *(v for v in node.inputs if v is not None)]
    return heads
