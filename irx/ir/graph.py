"""What a program is made of: values, nodes, graphs.

A graph is a list of nodes in execution order over single-assignment values. Types are computed when a node is made, by
the op's own rule, and never change afterwards: a rewrite makes new nodes. KV states are values too, threaded through
the nodes that update them, so that there are no hidden effects.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from irx.errors import TypeRuleError
from irx.ir.dims import Dim, SymDim
from irx.ir.opdef import Attr, OpDef, lookup
from irx.ir.types import TensorType, Type


@dataclass(frozen=True)
class Loc:
    """Where a node comes from: module path in the model, source line, and the passes that touched it."""

    module: str = ""
    line: str = ""
    passes: tuple[str, ...] = ()

    def touched(self, by: str) -> Loc:
        """This location with one more pass in its history."""
        return self if self.passes[-1:] == (by,) else replace(self, passes=(*self.passes, by))

    def __str__(self) -> str:
        return " in ".join(part for part in (self.line, self.module) if part) or "unknown place"


class Value:
    """A graph input or one result of a node. Compared by identity."""

    __slots__ = ("name", "producer", "type")

    def __init__(self, name: str, type: Type, producer: Node | None = None) -> None:
        self.name = name
        self.type = type
        self.producer = producer

    @property
    def tensor(self) -> TensorType:
        """The type, where it must be a tensor. Raises TypeRuleError for a KV state."""
        if not isinstance(self.type, TensorType):
            raise TypeRuleError(f"%{self.name} is a KV state where a tensor is needed")
        return self.type

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The shape of a tensor."""
        return self.tensor.shape

    @property
    def dtype(self) -> str:
        """The dtype of a tensor."""
        return self.tensor.dtype

    def __repr__(self) -> str:
        return f"%{self.name}: {self.type}"


class Weight(Value):
    """A constant tensor owned by the program's weights and shared by its graphs; printed `$name`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"${self.name}: {self.type}"


class Literal(Value):
    """A Python scalar or a size used as an operand; printed bare, and weakly typed as in torch."""

    __slots__ = ("value",)

    def __init__(self, value: bool | int | float | SymDim) -> None:
        weak = "bool_" if isinstance(value, bool) else "float_" if isinstance(value, float) else "int_"
        super().__init__("", TensorType((), weak))
        self.value = value

    def __repr__(self) -> str:
        return repr(self.value)


Operand: TypeAlias = "Value | bool | int | float | SymDim | None"


class Node:
    """One application of an op. Make nodes with `Graph.add` or a `Builder`."""

    __slots__ = ("_next", "_previous", "attrs", "inputs", "loc", "op", "outputs")

    def __init__(self, op: type[OpDef], inputs: tuple[Value | None, ...], attrs: dict[str, Attr], loc: Loc) -> None:
        self.op = op
        self.inputs = inputs
        self.attrs = attrs
        self.loc = loc
        self.outputs: tuple[Value, ...] = ()
        self._previous: Node = self
        self._next: Node = self

    @property
    def output(self) -> Value:
        """The only result. Raises ValueError where there are several."""
        (value,) = self.outputs
        return value

    def operand(self, name: str) -> Value | None:
        """The operand of that declared name, None if left out."""
        index = next(i for i, p in enumerate(self.op.operands) if p.name == name)
        return self.inputs[index] if index < len(self.inputs) else None

    def attr(self, name: str) -> Attr:
        """An attribute, or its declared default."""
        return self.attrs.get(name, self.op.attributes[name].default)

    def __repr__(self) -> str:
        results = ", ".join(f"%{v.name}" for v in self.outputs)
        return f"<{results} = {self.op.qualified()} at {self.loc}>"


class Graph:
    """Inputs, nodes in order, named outputs. Keeps track of who uses what, so that rewrites are local."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.inputs: list[Value] = []
        self.outputs: list[Value] = []
        self.output_names: list[str] = []
        self._users: dict[Value, dict[Node, None]] = {}
        self._names: dict[str, int] = {}
        self._end = Node(OpDef, (), {}, Loc())

    def add_input(self, name: str, type: Type) -> Value:
        """A new input after the existing ones."""
        value = Value(self._unique(name), type)
        self.inputs.append(value)
        return value

    def add(
        self,
        op: str | type[OpDef],
        inputs: Sequence[Operand],
        attrs: Mapping[str, Attr] | None = None,
        *,
        before: Node | None = None,
        loc: Loc | None = None,
        names: Sequence[str] = (),
        types: Sequence[Type] | None = None,
    ) -> Node:
        """A new node, at the end or just before another. Scalars become literals. Raises TypeRuleError if ill-typed.

        `names` are kept exactly where they are free. `types` are the result types where the caller has just inferred
        them; they are taken on trust.
        """
        definition = lookup(op) if isinstance(op, str) else op
        values = tuple(as_value(operand) for operand in inputs)
        attributes = dict(attrs or {})
        place = loc or (before.loc if before is not None else Loc())
        if types is None:
            try:
                types = definition.types([v.type if v is not None else None for v in values], attributes)
            except TypeRuleError as error:
                raise error.at(str(place)) from None
        node = Node(definition, values, attributes, place)
        bases = names or [definition.name.rpartition(".")[2]] * len(types)
        node.outputs = tuple(Value(self._unique(n), t, node) for n, t in zip(bases, types, strict=True))
        self._link(node, before or self._end)
        for value in values:
            self._use(value, node)
        return node

    def set_outputs(self, outputs: Mapping[str, Value]) -> None:
        """Name and order the results of the graph."""
        self.output_names = list(outputs)
        self.outputs = list(outputs.values())

    @property
    def nodes(self) -> Iterator[Node]:
        """Nodes in order. The current node may be erased and nodes may be added while iterating."""
        node = self._end._next
        while node is not self._end:
            following = node._next
            yield node
            node = following if node._next is node else node._next

    @property
    def reversed_nodes(self) -> Iterator[Node]:
        """Nodes from last to first; the current one may be erased."""
        node = self._end._previous
        while node is not self._end:
            previous = node._previous
            yield node
            node = previous

    def __len__(self) -> int:
        return sum(1 for _ in self.nodes)

    def users(self, value: Value) -> tuple[Node, ...]:
        """Nodes that read `value`, each once, in the order they were made."""
        return tuple(self._users.get(value, ()))

    def is_output(self, value: Value) -> bool:
        """True where the graph returns the value."""
        return any(value is output for output in self.outputs)

    def is_unused(self, node: Node) -> bool:
        """True when nothing reads any result of the node."""
        return not any(self._users.get(v) or self.is_output(v) for v in node.outputs)

    def replace(self, old: Value, new: Value) -> None:
        """Let everything that reads `old` read `new` instead. Their types must be equal, as consumers keep theirs."""
        if old.type != new.type:
            raise TypeRuleError(f"cannot replace %{old.name}: {old.type} by %{new.name}: {new.type}")
        for node in self.users(old):
            self.set_inputs(node, [new if v is old else v for v in node.inputs])
        self.outputs = [new if v is old else v for v in self.outputs]

    def set_inputs(self, node: Node, inputs: Iterable[Value | None]) -> None:
        """Change what a node reads; the new operands must have the old ones' types."""
        for value in node.inputs:
            if value is not None:
                self._users.get(value, {}).pop(node, None)
        node.inputs = tuple(inputs)
        for value in node.inputs:
            self._use(value, node)

    def erase(self, node: Node) -> None:
        """Remove a node nothing reads. Raises TypeRuleError otherwise."""
        if not self.is_unused(node):
            raise TypeRuleError(f"{node!r} is still used")
        self.set_inputs(node, ())
        node._previous._next, node._next._previous = node._next, node._previous
        node._previous = node._next = node

    def move(self, node: Node, before: Node) -> None:
        """Let a node stand just before another. The caller sees to it that operands still come before their readers."""
        node._previous._next, node._next._previous = node._next, node._previous
        self._link(node, before)

    def span(self, nodes: Collection[Node]) -> list[Node]:
        """All nodes from the first to the last of `nodes`, in order, found in as many steps as there are."""
        missing = set(nodes)
        found = deque([missing.pop()])
        before, after = found[0]._previous, found[0]._next
        while missing:
            if before is not self._end:
                found.appendleft(before)
                missing.discard(before)
                before = before._previous
            if after is not self._end and missing:
                found.append(after)
                missing.discard(after)
                after = after._next
            if before is self._end and after is self._end and missing:
                raise ValueError(f"{missing.pop()!r} is no node of @{self.name}")
        wanted = [index for index, node in enumerate(found) if node in nodes]
        return list(found)[wanted[0] : wanted[-1] + 1]

    def clone(self, name: str | None = None) -> Graph:
        """An independent copy; weights are shared."""
        copy = Graph(name or self.name)
        mapping: dict[Value, Value] = {v: copy.add_input(v.name, v.type) for v in self.inputs}
        for node in self.nodes:
            made = copy.add_copy(node, mapping)
            mapping.update(zip(node.outputs, made.outputs, strict=True))
        copy.output_names = list(self.output_names)
        copy.outputs = [mapping.get(v, v) for v in self.outputs]
        return copy

    def add_copy(self, node: Node, mapping: Mapping[Value, Value], before: Node | None = None) -> Node:
        """A copy of a node of any graph, operands mapped (absent ones kept), types taken over as they are."""
        inputs = tuple(mapping.get(v, v) if v is not None else None for v in node.inputs)
        made = Node(node.op, inputs, dict(node.attrs), node.loc)
        made.outputs = tuple(Value(self._unique(v.name), v.type, made) for v in node.outputs)
        self._link(made, before or self._end)
        for value in inputs:
            self._use(value, made)
        return made

    def _link(self, node: Node, before: Node) -> None:
        node._previous, node._next = before._previous, before
        before._previous._next = node
        before._previous = node

    def _use(self, value: Value | None, node: Node) -> None:
        if value is not None and not isinstance(value, Literal):
            self._users.setdefault(value, {})[node] = None

    def _unique(self, name: str) -> str:
        base = re.sub(r"\W", "_", name) or "v"
        count = self._names.get(base)
        if count is None:
            self._names[base] = 0
            return base
        while f"{base}_{count + 1}" in self._names:
            count += 1
        self._names[base] = count + 1
        unique = f"{base}_{count + 1}"
        self._names[unique] = 0
        return unique


def as_value(operand: Operand) -> Value | None:
    """An operand as a value: scalars and sizes become literals."""
    return operand if operand is None or isinstance(operand, Value) else Literal(operand)


class Builder:
    """Adds nodes at one place with one location: `b = Builder(graph, before=node)`, `y = b("add", x, 1.0)`."""

    def __init__(self, graph: Graph, before: Node | None = None, loc: Loc | None = None) -> None:
        self.graph = graph
        self.before = before
        self.loc = loc or (before.loc if before is not None else Loc())

    def __call__(self, op: str, *inputs: Operand, **attrs: Attr) -> Value:
        """Add a node with one result and return that."""
        return self.many(op, *inputs, **attrs)[0]

    def many(self, op: str, *inputs: Operand, **attrs: Attr) -> tuple[Value, ...]:
        """Add a node and return all its results."""
        return self.graph.add(op, inputs, attrs, before=self.before, loc=self.loc).outputs
