"""The matchers behind `irx.rewrite.patterns`: one class for each kind of pattern.

A matcher gets a value and what was found so far, and yields every way in which the value fits, as a `Match` with more
captures. Where it fits in no way, it tells the trace why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from irx.ir.graph import Graph, Literal, Node, Value
from irx.ir.opdef import Attr
from irx.rewrite.match import Match, describe, scalar

Condition: TypeAlias = Callable[[Value], "str | None"]
"""Why a value does not fit, None if it does."""


class Pattern:
    """Base of all patterns. `roots` are the ops a fitting value may be computed by, None when it may be any."""

    roots: frozenset[str] | None = None

    def match(self, value: Value | None, found: Match) -> Iterator[Match]:
        """Every way in which `value` fits, as `found` with more captures."""
        raise TypeError(f"{type(self).__name__} does not define match")

    def matches(self, graph: Graph, value: Value) -> Iterator[Match]:
        """Every way in which `value` of `graph` fits."""
        return self.match(value, Match(graph))


class AnyValue(Pattern):
    """Any value, at which the pattern ends; `where` may restrict it, `optional` lets an operand be left out."""

    def __init__(self, name: str | None, where: Condition | None = None, optional: bool = False) -> None:
        self.name, self.where, self.optional = name, where, optional

    def match(self, value: Value | None, found: Match) -> Iterator[Match]:
        """At most one way."""
        if value is None:
            if self.optional:
                yield found
            return
        reason = self.where(value) if self.where else None
        bound = found.bind(self.name, value) if reason is None else None
        if bound is None:
            why = f"{self.name}: {reason}" if self.name and reason else reason
            found.trace.fail(found, why or f"{describe(value)} is another {self.name} than before")
        else:
            yield bound if isinstance(value, Literal) else bound.ending(value)


class Number(Pattern):
    """A numeric literal; `accepts` decides which."""

    def __init__(self, name: str | None, accepts: Callable[[float], bool], wanted: str) -> None:
        self.name, self.accepts, self.wanted = name, accepts, wanted

    def match(self, value: Value | None, found: Match) -> Iterator[Match]:
        """At most one way."""
        found_number = scalar(value)
        if value is None or found_number is None or not self.accepts(float(found_number)):
            found.trace.fail(found, f"{describe(value)} is not {self.wanted}")
            return
        bound = found.bind(self.name, value)
        if bound is not None:
            yield bound


class Op(Pattern):
    """A node of one op; see `op`."""

    def __init__(
        self,
        name: str,
        operands: Sequence[Pattern] | None,
        capture: str | None,
        where: Callable[[Node], str | None] | None,
        attrs: Mapping[str, Attr],
        key: bool,
        shared: bool,
    ) -> None:
        self.name, self.operands, self.capture, self.where = name, operands, capture, where
        self.attrs, self.key, self.shared = attrs, key, shared
        self.roots = frozenset([name])

    def match(self, value: Value | None, found: Match) -> Iterator[Match]:
        """One way for every way in which the operands fit, in either order if the op commutes."""
        node = value.producer if value is not None else None
        if value is None or node is None or node.op.name != self.name or len(node.outputs) != 1:
            found.trace.fail(found, f"{describe(value)} is not {self.name}")
            return
        here = found.bind(self.capture, value)
        if here is None:
            found.trace.fail(found, f"{describe(value)} is another {self.capture} than before")
            return
        here = here.through(node, key=self.key, shared=self.shared)
        reason = self._unfit(node)
        if reason is not None:
            here.trace.fail(here, f"{self.name}: {reason}")
            return
        if self.operands is None:
            yield here.ending(value)
            return
        for order in _orders(node):
            yield from _in_turn(self.operands, order, here)

    def _unfit(self, node: Node) -> str | None:
        if self.operands is not None and any(v is not None for v in node.inputs[len(self.operands) :]):
            return f"more than {len(self.operands)} operands"
        for name, wanted in self.attrs.items():
            if node.attr(name) != wanted:
                return f"{name} is {node.attr(name)}, not {wanted}"
        return self.where(node) if self.where else None


class OneOf(Pattern):
    """Any of several patterns, tried in order."""

    def __init__(self, choices: Sequence[Pattern]) -> None:
        self.choices = choices
        roots = [choice.roots for choice in choices]
        self.roots = None if None in roots else frozenset().union(*(r for r in roots if r is not None))

    def match(self, value: Value | None, found: Match) -> Iterator[Match]:
        """Every way of every choice."""
        for choice in self.choices:
            yield from choice.match(value, found)


class Through(Pattern):
    """A pattern behind any number (or at most `limit`) of nodes of some ops, looking at their first operand."""

    def __init__(self, ops: frozenset[str], inner: Pattern, limit: int, where: Condition | None) -> None:
        self.ops, self.inner, self.limit, self.where = ops, inner, limit, where
        self.roots = None if inner.roots is None else inner.roots | ops

    def match(self, value: Value | None, found: Match) -> Iterator[Match]:
        """First with as many nodes as possible looked through."""
        ways = [(value, found)]
        for _ in range(self.limit):
            node = value.producer if value is not None else None
            if value is None or node is None or node.op.name not in self.ops or (self.where and self.where(value)):
                break
            value, found = node.inputs[0], found.through(node, shared=True)
            ways.append((value, found))
        for inner, after in reversed(ways):
            yield from self.inner.match(inner, after)


class Named(Pattern):
    """A pattern whose outermost value gets a name; see `named`."""

    def __init__(self, name: str, inner: Pattern) -> None:
        self.name, self.inner, self.roots = name, inner, inner.roots

    def match(self, value: Value | None, found: Match) -> Iterator[Match]:
        """The inner pattern's ways."""
        bound = found.bind(self.name, value) if value is not None else None
        if bound is not None:
            yield from self.inner.match(value, bound)


class Product(Pattern):
    """Factors of a tree of multiplications, in any order and association; see `product`."""

    roots = frozenset(["mul"])

    def __init__(self, factors: Sequence[Pattern]) -> None:
        self.factors = factors

    def match(self, value: Value | None, found: Match) -> Iterator[Match]:
        """Every assignment of patterns to factors, for every way to read the tree."""
        if value is None:
            return
        for parts, nodes in _factors(value, len(self.factors)):
            here = found
            for node in nodes:
                here = here.through(node)
            yield from _any_order(self.factors, parts, here)


def _orders(node: Node) -> Iterator[Sequence[Value | None]]:
    yield node.inputs
    if node.op.commutative and len(node.inputs) >= 2 and node.inputs[0] is not node.inputs[1]:
        yield (node.inputs[1], node.inputs[0], *node.inputs[2:])


def _in_turn(patterns: Sequence[Pattern], values: Sequence[Value | None], found: Match) -> Iterator[Match]:
    if not patterns:
        yield found
        return
    value = values[0] if values else None
    for after in patterns[0].match(value, found):
        yield from _in_turn(patterns[1:], values[1:], after)


def _any_order(patterns: Sequence[Pattern], values: Sequence[Value | None], found: Match) -> Iterator[Match]:
    if not patterns:
        yield found
        return
    for index, value in enumerate(values):
        for after in patterns[0].match(value, found):
            yield from _any_order(patterns[1:], [*values[:index], *values[index + 1 :]], after)


def _factors(value: Value | None, count: int) -> Iterator[tuple[list[Value | None], list[Node]]]:
    """Ways to read a value as a product of `count` values, each with the multiplications it consists of."""
    if count == 1:
        yield [value], []
        return
    node = value.producer if value is not None else None
    if node is None or node.op.name != "mul":
        return
    for left in range(1, count):
        for some, above in _factors(node.inputs[0], left):
            for others, beside in _factors(node.inputs[1], count - left):
                yield [*some, *others], [node, *above, *beside]
