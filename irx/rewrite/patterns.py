"""Patterns: small objects that say what a piece of a graph looks like, from its last node down to its operands.

    x = any_value("x")
    square = one_of(op("pow", x, literal(2)), op("mul", x, x))
    mean = op("mean", square, where=over_last_axis)
    inverse = op("rsqrt", op("add", mean, number("eps")), key=True)
    rms_norm = op("mul", constant("weight"), maybe("cast", op("mul", x, inverse)))

    for match in rms_norm.matches(graph, value):
        match["x"], match.number("eps"), match.root

`op` matches a node by name and, one by one, its operands; operands of a commutative op come in either order, and an
operand the pattern does not list must be left out. A name captures: twice the same name must mean the same value.
`maybe` allows a node that may be there or not, `through` looks through any number of casts and reshapes, `one_of`
tries ways in turn, `named` captures the value another pattern starts from, `product` matches a tree of multiplications
as a set of factors. Conditions (`where=`) are functions that return why a value does not do, or None.

A pattern yields every way in which it fits, so that a later condition may reject the first. Where it fits in no way,
`Match.trace` holds the condition that failed at the deepest point, for the report; see `Trace` for `key`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import irx.ops  # noqa: F401  (declares the ops that patterns name)
from irx.analysis.structure import is_constant
from irx.ir.graph import Graph, Literal, Node, Value
from irx.ir.opdef import Attr, lookup
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
            found.trace.fail(found, reason or f"{describe(value)} is another {self.name} than before")
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


def op(
    name: str,
    *operands: Pattern,
    capture: str | None = None,
    where: Callable[[Node], str | None] | None = None,
    attrs: Mapping[str, Attr] | None = None,
    key: bool = False,
    shared: bool = False,
) -> Pattern:
    """A node of that op whose operands fit, with these attributes; without operands the pattern ends at its result.

    `capture` names the result, `where` gets the node. `key` marks the op that makes a failed match worth reporting.
    `shared` allows uses outside of the match where the rule is exclusive.
    """
    lookup(name)
    return Op(name, operands or None, capture, where, attrs or {}, key, shared)


def any_value(name: str | None = None, where: Condition | None = None) -> Pattern:
    """Any value; the pattern ends there."""
    return AnyValue(name, where)


def optional(name: str, where: Condition | None = None) -> Pattern:
    """Any value, or an operand that is left out."""
    return AnyValue(name, where, optional=True)


def constant(name: str, where: Condition | None = None) -> Pattern:
    """A weight, or an expression of weights and literals, of one element or more."""

    def unfit(value: Value) -> str | None:
        if isinstance(value, Literal) or not is_constant(value):
            return f"{describe(value)} is not a weight"
        return where(value) if where else None

    return AnyValue(name, unfit)


def literal(value: float, tolerance: float = 1e-6) -> Pattern:
    """The number `value`, up to a relative difference."""
    return Number(None, lambda n: abs(n - value) <= tolerance * max(abs(value), abs(n)), f"{value:g}")


def number(name: str) -> Pattern:
    """Any number."""
    return Number(name, lambda n: True, "a number")


def maybe(name: str, inner: Pattern, where: Condition | None = None) -> Pattern:
    """The inner pattern, or the same as first operand of one node of that op; the node's result must fit `where`."""
    return Through(frozenset([name]), inner, 1, where)


def through(inner: Pattern, ops: Sequence[str] = ("cast", "reshape"), where: Condition | None = None) -> Pattern:
    """The inner pattern behind any number of nodes of these ops."""
    return Through(frozenset(ops), inner, 8, where)


def one_of(*choices: Pattern) -> Pattern:
    """The first choices that fit."""
    return OneOf(choices)


def named(name: str, inner: Pattern) -> Pattern:
    """The inner pattern, with a name for the value it starts from."""
    return Named(name, inner)


def product(*factors: Pattern) -> Pattern:
    """Factors multiplied in any order and association: `product(a, b, c)` fits a*(b*c) and (c*a)*b."""
    return Product(factors)


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
