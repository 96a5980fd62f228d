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

from collections.abc import Callable, Mapping, Sequence

import irx.ops  # noqa: F401  (declares the ops that patterns name)
from irx.analysis.structure import is_constant
from irx.ir.graph import Literal, Node, Value
from irx.ir.opdef import Attr, lookup
from irx.rewrite.match import describe
from irx.rewrite.matchers import AnyValue, Condition, Named, Number, OneOf, Op, Product, Through
from irx.rewrite.matchers import Pattern as Pattern


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
