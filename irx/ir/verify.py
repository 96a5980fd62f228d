"""Says whether a program is well formed. Runs after every pass, so a pass that breaks a program is found at once.

The rules, by the number that an error names:

1.  An operand is an input of the graph, a result of an earlier node of the same graph, a weight, or a literal.
2.  Every value has one producer, and every value of a graph its own name; names are made of letters, digits and `_`.
3.  The types of a node's results are those that the op's type rule gives for its operands and attributes.
4.  A weight that a graph reads is the one of that name in the program's store; its type has a fixed shape. A derived
    weight is made of weights of the store that are declared before it, and has the type that its op gives.
5.  Every named size is declared in `Program.sizes`, under a name that is a plain word and no reserved one, with a range
    that is not empty and holds its hint.
6.  Every named size that a graph uses can be read off its inputs: it is an extent of an input or the capacity of a KV
    input, or the only unknown of such an expression or of one of the program's relations.
7.  A graph is stored under its own name; its results have names, each its own, and are inputs, results of its nodes, or
    weights.
8.  The table of users holds exactly the nodes that read a value.
9.  KV states are linear: an op that takes a state and gives a new one replaces it. A state is replaced at most once,
    nothing reads it afterwards, and it is not a result of the graph. (Ops whose new state is a copy, `copies_state`,
    only read.) What KV types call layout and sharer are plain words, and their code is a known one.
10. A graph that takes and gives states gives each back under the name, and with the type, that it came in with.
    `prefill` and `decode` take the same states in the same order and write to the same ones; an input that both take
    has one dtype and rank, and so has a result that both give.
11. Attributes are declared by the op, plain data, and of the declared kind; operand marks (`#0`) name operands that
    the node has.
12. The weak dtypes belong to literals alone: no input, weight or result has one.
13. The body of a fusion is a graph that follows these rules itself. It reads no weights (they are its inputs) and holds
    no fusion, and no two bodies have one name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from irx.errors import IRXError, VerifyError
from irx.ir.attributes import misfit
from irx.ir.graph import Graph, Literal, Node, Value, Weight
from irx.ir.inference import Inference
from irx.ir.opdef import Operand
from irx.ir.printer import print_node
from irx.ir.program import Program
from irx.ir.regions import body_of, regions
from irx.ir.signatures import check_signatures
from irx.ir.sizes import check_bound, check_declared, dims_of
from irx.ir.states import check_states
from irx.ir.types import WEAK, TensorType, Type
from irx.ir.weights import Entry

_NAME = re.compile(r"\w+")


def verify(program: Program) -> None:
    """Check every rule. Raises VerifyError for the first that is broken, with the place."""
    inference = Inference()
    check_declared(program)
    _check_weights(program, inference)
    for name, graph in program.graphs.items():
        if graph.name != name:
            raise VerifyError(7, f"graph @{graph.name} is stored as {name!r}")
        _GraphCheck(program, graph, inference).run()
        check_bound(program, graph)
        check_states(graph)
    _check_regions(program, inference)
    check_signatures(program)


class _GraphCheck:
    """The rules that one walk over the nodes decides."""

    def __init__(self, program: Program, graph: Graph, inference: Inference) -> None:
        self.program = program
        self.graph = graph
        self.inference = inference
        self.defined: set[Value] = set()
        self.names: set[str] = set()
        self.users: dict[Value, dict[Node, None]] = {}

    def run(self) -> None:
        for value in self.graph.inputs:
            self._define(value, None)
        for node in self.graph.nodes:
            self._node(node)
        self._outputs()
        self._users()

    def _node(self, node: Node) -> None:
        for value in node.inputs:
            self._operand(value, node)
        self._attributes(node)
        self._types(node)
        for value in node.outputs:
            self._define(value, node)

    def _define(self, value: Value, node: Node | None) -> None:
        if value in self.defined or value.producer is not node or isinstance(value, Weight | Literal):
            raise self._broken(2, f"%{value.name} has more than one producer, or another than it says", node)
        if value.name in self.names or not _NAME.fullmatch(value.name):
            raise self._broken(2, f"%{value.name} is no name, or the name of two values", node)
        if _is_weak(value.type):
            raise self._broken(12, f"%{value.name} has the dtype {value.dtype} of literals", node)
        self.defined.add(value)
        self.names.add(value.name)

    def _operand(self, value: Value | None, node: Node) -> None:
        if value is None or isinstance(value, Literal):
            return
        self.users.setdefault(value, {})[node] = None
        if isinstance(value, Weight):
            self._weight(value, node)
        elif value not in self.defined:
            raise self._broken(1, f"%{value.name} is read where it is not yet defined", node)

    def _weight(self, weight: Weight, node: Node | None) -> None:
        store = self.program.weights
        if weight.name not in store or store[weight.name] is not weight:
            raise self._broken(4, f"${weight.name} is not the weight of that name in the program's store", node)

    def _attributes(self, node: Node) -> None:
        problem = misfit(node.op, node.attrs)
        for index in _marks(tuple(node.attrs.values())):
            if not 0 <= index < len(node.inputs):
                problem = f"#{index} names an operand that the node does not have"
        if problem:
            raise self._broken(11, problem, node)

    def _types(self, node: Node) -> None:
        operands = [value.type if value is not None else None for value in node.inputs]
        try:
            expected = self.inference.types(node.op, operands, node.attrs)
        except IRXError as error:
            raise self._broken(3, error.what, node) from error
        found = tuple(value.type for value in node.outputs)
        if found != expected:
            raise self._broken(
                3, f"results are {_list(found)}, but {node.op.qualified()} gives {_list(expected)}", node
            )

    def _outputs(self) -> None:
        names = self.graph.output_names
        if len(names) != len(self.graph.outputs) or len(set(names)) != len(names):
            raise self._broken(7, f"the results do not have a name each: {', '.join(names)}", None)
        for name, value in zip(names, self.graph.outputs, strict=True):
            if isinstance(value, Weight):
                self._weight(value, None)
            elif value not in self.defined:
                raise self._broken(7, f"result {name!r} is no value of the graph", None)

    def _users(self) -> None:
        for value in self.defined | self.users.keys():
            if set(self.graph.users(value)) != set(self.users.get(value, ())):
                raise self._broken(8, f"the users of %{value.name} are not those that the table says", value.producer)

    def _broken(self, rule: int, what: str, node: Node | None) -> VerifyError:
        place = f"@{self.graph.name}"
        if node is not None:
            place += f": {_shown(node)} ({node.loc})"
        return VerifyError(rule, what, where=place)


def _check_regions(program: Program, inference: Inference) -> None:
    names: set[str] = set()
    for body in regions(program):
        if body.name in names:
            raise VerifyError(13, f"two regions are named @{body.name}")
        names.add(body.name)
        for node in body.nodes:
            if body_of(node) is not None or any(isinstance(value, Weight) for value in node.inputs):
                raise VerifyError(13, "a body holds no fusion and reads no weight", where=f"@{body.name}: {node!r}")
        _GraphCheck(program, body, inference).run()
        check_states(body)


def _check_weights(program: Program, inference: Inference) -> None:
    seen: set[Weight] = set()
    for entry in program.weights:
        weight = entry.weight
        if _is_weak(weight.type) or any(not isinstance(dim, int) for dim in dims_of(weight.type)):
            rule = 12 if _is_weak(weight.type) else 4
            raise VerifyError(rule, f"${weight.name} cannot have the type {weight.type}")
        problem = _derivation_problem(entry, seen, inference)
        if problem:
            raise VerifyError(4, f"derived weight ${weight.name}: {problem}")
        seen.add(weight)


def _derivation_problem(entry: Entry, seen: set[Weight], inference: Inference) -> str | None:
    made = entry.derivation
    if made is None:
        return None
    foreign = [v for v in made.inputs if isinstance(v, Weight) and v not in seen]
    if foreign:
        return f"${foreign[0].name} is not declared before it"
    problem = misfit(made.op, made.attrs)
    if problem:
        return problem
    try:
        expected = inference.types(made.op, [weight.type for weight in made.inputs], made.attrs)
    except IRXError as error:
        return error.what
    return (
        None if expected == (entry.weight.type,) else f"it is {entry.weight.type}, but its op gives {_list(expected)}"
    )


def _marks(value: object) -> Iterator[int]:
    if isinstance(value, Operand):
        yield value.index
    elif isinstance(value, tuple):
        for part in value:
            yield from _marks(part)


def _is_weak(type: Type) -> bool:
    return isinstance(type, TensorType) and type.dtype in WEAK


def _shown(node: Node) -> str:
    try:
        return print_node(node)
    except TypeError:
        return repr(node)  # an attribute that is not plain data, which is what the error is about


def _list(types: tuple[Type, ...]) -> str:
    return ", ".join(map(str, types)) or "nothing"
