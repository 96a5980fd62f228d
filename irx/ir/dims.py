"""Sizes of tensors: a plain int, or an integer expression over named sizes.

`Dim` is `int | SymDim`. Arithmetic on dims gives dims, and a result that is constant is a plain int again, so code
that only meets static shapes never sees this file at work. Expressions are kept in sympy's expanded form, which makes
`2*(S + 1)` and `2*S + 2` one value. Named sizes are positive integers; their ranges live on the `Program`.

This is the only file that imports sympy, and only when a symbolic size is met.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import sympy

Bindings: TypeAlias = Mapping[str, int]


class SymDim:
    """An integer expression over named sizes that is not constant. Build with `symbol`, `parse_dim` or arithmetic."""

    __slots__ = ("_evaluate", "expr", "text")

    def __init__(self, expr: sympy.Expr) -> None:
        self.expr = expr
        self.text = _print(expr)
        self._evaluate: Callable[[Bindings], int] | None = None

    def __add__(self, other: Dim) -> Dim:
        return _wrap(self.expr + _raw(other))

    def __sub__(self, other: Dim) -> Dim:
        return _wrap(self.expr - _raw(other))

    def __rsub__(self, other: Dim) -> Dim:
        return _wrap(_raw(other) - self.expr)

    def __mul__(self, other: Dim) -> Dim:
        return _wrap(self.expr * _raw(other))

    def __neg__(self) -> Dim:
        return _wrap(-self.expr)

    def __floordiv__(self, other: Dim) -> Dim:
        return _floordiv(self.expr, _raw(other))

    def __rfloordiv__(self, other: Dim) -> Dim:
        return _floordiv(_raw(other), self.expr)

    def __mod__(self, other: Dim) -> Dim:
        return _wrap(_sympy().Mod(self.expr, _raw(other)))

    __radd__ = __add__
    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SymDim) and self.expr == other.expr

    def __hash__(self) -> int:
        return hash(self.text)

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__


Dim: TypeAlias = int | SymDim


@dataclass(frozen=True)
class Range:
    """Inclusive bounds of a named size; `high` None means unbounded. `hint` is the size seen at capture."""

    low: int = 1
    high: int | None = None
    hint: int | None = None

    def __contains__(self, value: int) -> bool:
        return value >= self.low and (self.high is None or value <= self.high)


def _sympy() -> Any:
    import sympy

    return sympy


@lru_cache(maxsize=4096)
def symbol(name: str) -> SymDim:
    """The named size itself."""
    return SymDim(_sympy().Symbol(name, integer=True, positive=True))


def maximum(a: Dim, b: Dim) -> Dim:
    """max(a, b), decided when the difference is constant or its sign is known."""
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    return _wrap(_sympy().Max(_raw(a), _raw(b)))


def minimum(a: Dim, b: Dim) -> Dim:
    """min(a, b), as `maximum`."""
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    return _wrap(_sympy().Min(_raw(a), _raw(b)))


def product(dims: Iterable[Dim]) -> Dim:
    """The product of all dims; 1 for none."""
    result: Dim = 1
    for dim in dims:
        result = dim * result
    return result


def names(dim: Dim) -> frozenset[str]:
    """The named sizes a dim depends on."""
    return frozenset() if isinstance(dim, int) else frozenset(s.name for s in dim.expr.free_symbols)


def evaluate(dim: Dim, bindings: Bindings) -> int:
    """The value of `dim` where every named size has a value. Raises KeyError for a size without one."""
    if isinstance(dim, int):
        return dim
    if dim._evaluate is None:
        dim._evaluate = _compile(dim.expr)
    return int(dim._evaluate(bindings))


def substitute(dim: Dim, mapping: Mapping[str, Dim]) -> Dim:
    """`dim` with named sizes replaced by other dims; names that do not occur are ignored."""
    if isinstance(dim, int) or not (names(dim) & mapping.keys()):
        return dim
    pairs = {symbol(name).expr: _raw(value) for name, value in mapping.items()}
    return _wrap(dim.expr.xreplace(pairs))


def is_nonnegative(dim: Dim) -> bool:
    """True when `dim` >= 0 is certain for every positive value of its named sizes."""
    return dim >= 0 if isinstance(dim, int) else bool(dim.expr.is_nonnegative)


@lru_cache(maxsize=65536)
def parse_dim(text: str) -> Dim:
    """Read what `str(dim)` wrote: integers, names, + - * / // %, floor, ceiling, Max, Min, Mod.

    Raises ValueError when the text is anything else; nothing is ever evaluated as Python.
    """
    if text.isdigit():
        return int(text)
    if text.isidentifier():
        return symbol(text)
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"not a size: {text!r}") from error
    return _wrap(_read(tree))


def _raw(dim: Dim) -> Any:
    return dim.expr if isinstance(dim, SymDim) else _sympy().Integer(dim)


def _wrap(expr: Any) -> Dim:
    expr = _sympy().expand(expr)
    return int(expr) if expr.is_Integer else SymDim(expr)


def _floordiv(a: Any, b: Any) -> Dim:
    return _wrap(_sympy().floor(_sympy().expand(a / b)))


def _print(expr: Any) -> str:
    return str(expr)


_FUNCTIONS = {"floor", "ceiling", "Max", "Min", "Mod"}


def _read(tree: ast.expr) -> Any:
    sympy = _sympy()
    match tree:
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            return sympy.Integer(value)
        case ast.Name(id=name):
            return symbol(name).expr
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_read(operand)
        case ast.BinOp(left=left, op=operator, right=right):
            return _binary(operator, _read(left), _read(right))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return getattr(sympy, name)(*map(_read, args))
    raise ValueError(f"not a size: {ast.unparse(tree)!r}")


def _binary(operator: ast.operator, left: Any, right: Any) -> Any:
    match operator:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            return left / right
        case ast.FloorDiv():
            return _sympy().floor(left / right)
        case ast.Mod():
            return _sympy().Mod(left, right)
        case ast.Pow() if right.is_Integer and 0 <= int(right) <= 8:
            return left**right
    raise ValueError("not a size: unknown operator")


def _compile(expr: Any) -> Callable[[Bindings], Any]:
    """A closure tree: hundreds of times faster than sympy's own substitution, and exact (rationals stay rational)."""
    from fractions import Fraction
    from math import ceil, floor, prod

    if expr.is_Symbol:
        name = expr.name
        return lambda bindings: bindings[name]
    if expr.is_Rational:
        value = int(expr) if expr.is_Integer else Fraction(int(expr.p), int(expr.q))
        return lambda bindings: value
    parts = [_compile(argument) for argument in expr.args]
    kind = expr.func.__name__
    apply: dict[str, Callable[[list[Any]], Any]] = {
        "Add": sum,
        "Mul": prod,
        "Pow": lambda v: Fraction(v[0]) ** v[1],
        "floor": lambda v: floor(v[0]),
        "ceiling": lambda v: ceil(v[0]),
        "Max": max,
        "Min": min,
        "Mod": lambda v: v[0] % v[1],
    }
    if kind not in apply:
        raise ValueError(f"cannot evaluate a size that contains {kind}: {expr}")
    function = apply[kind]
    return lambda bindings: function([part(bindings) for part in parts])
