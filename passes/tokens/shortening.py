"""A copy of a graph in which from some values on there are fewer tokens than the graph was given.

    made = Shortened(graph, length)              # `length`: the named size of the token axis
    for node in graph.nodes:
        made.copy(node)                          # as it is, or for fewer tokens where it reads a shortened value
        ...made.shorten(value, fewer, size)      # from here on `fewer` stands for `value`
    made.finish()

What reads a shortened value is typed anew for the length of the moment, so nodes that mix it with values of all tokens
are ill-typed, unless `fitted` gives such a value's tokens that stay.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from irx.errors import IRXError
from irx.ir.dims import Dim, SymDim
from irx.ir.graph import Builder, Graph, Loc, Node, Value
from irx.passes.normalize.caching.substitute import substituted_attr, substituted_operand


class NotShortened(IRXError):
    """A graph cannot do with fewer tokens: the reason, and where."""

    def __init__(self, reason: str, loc: Loc) -> None:
        super().__init__(reason)
        self.reason = reason
        self.loc = loc


@dataclass
class Shortened:
    """The copy while it is made. `current` is how many tokens there are at this point."""

    source: Graph
    length: SymDim
    by: str
    made: Graph = field(init=False)
    mapping: dict[Value, Value] = field(init=False)
    current: Dim = field(init=False)
    moved: set[Value] = field(default_factory=set)
    """Values of the source that have fewer tokens in the copy."""

    def __post_init__(self) -> None:
        self.made = Graph(self.source.name)
        self.mapping = {value: self.made.add_input(value.name, value.type) for value in self.source.inputs}
        self.current = self.length

    def builder(self, node: Node) -> Builder:
        """Adds nodes at the end of the copy, in the name of `node`."""
        return Builder(self.made, loc=node.loc.touched(self.by))

    def value(self, value: Value) -> Value:
        """What stands for a value of the source."""
        return self.mapping.get(value, value)

    def copy(self, node: Node) -> None:
        """Copy a node. Raises TypeRuleError where it cannot take fewer tokens."""
        if self.moved.isdisjoint(node.inputs):
            made = self.made.add_copy(node, self.mapping)
            self.mapping.update(zip(node.outputs, made.outputs, strict=True))
        else:
            self.replaced(node, self._again(node))

    def replaced(self, node: Node, made: Node) -> None:
        """From here on the results of `made`, which have fewer tokens, stand for those of `node`."""
        self.moved.update(node.outputs)
        self.mapping.update(zip(node.outputs, made.outputs, strict=True))

    def fitted(self, value: Value, node: Node) -> Value:
        """What stands for a value of all tokens, which `node` reads beside shortened ones: here the value itself."""
        return self.value(value)

    def shorten(self, value: Value, fewer: Value, size: Dim) -> None:
        """From here on `fewer` stands for `value`, and there are `size` tokens."""
        self.mapping[value] = fewer
        self.moved.add(value)
        self.current = size

    def restore(self, value: Value, whole: Value) -> None:
        """From here on `whole`, which has all tokens, stands for `value`, and nothing may read what had fewer."""
        self.mapping[value] = whole
        self.moved.discard(value)
        self.current = self.length

    def finish(self) -> Graph:
        """The copy with its outputs. Raises NotShortened where the type of one would be another."""
        pairs = zip(self.source.output_names, self.source.outputs, strict=True)
        outputs = {name: self.value(value) for name, value in pairs}
        for (name, new), old in zip(outputs.items(), self.source.outputs, strict=True):
            if new.type != old.type:
                loc = old.producer.loc if old.producer is not None else Loc()
                raise NotShortened(f"the graph returns %{old.name} ({name}), which would be {new.type}", loc)
        self.made.set_outputs(outputs)
        return self.made

    def _again(self, node: Node) -> Node:
        sizes = {str(self.length): self.current}
        attrs = {key: substituted_attr(attr, sizes) for key, attr in node.attrs.items()}
        names = [value.name for value in node.outputs]
        operands = [self._operand(value, node, sizes) for value in node.inputs]
        return self.made.add(node.op, operands, attrs, loc=node.loc, names=names)

    def _operand(self, value: Value | None, node: Node, sizes: dict[str, Dim]) -> Value | None:
        if value is None or value in self.moved or value not in self.mapping:
            return substituted_operand(value, self.mapping, sizes)
        return self.fitted(value, node)


def token_axis(stream: Value) -> SymDim:
    """The named size of a stream [B, S, D]. Raises NotShortened."""
    loc = stream.producer.loc if stream.producer is not None else Loc()
    shape = stream.shape
    if len(shape) != 3:
        raise NotShortened(f"the stream %{stream.name} is {stream.type}, not [batch, tokens, channels]", loc)
    if not isinstance(shape[1], SymDim) or not str(shape[1]).isidentifier():
        raise NotShortened(f"{shape[1]} tokens: only a length that is a named size can be told from other sizes", loc)
    return shape[1]
