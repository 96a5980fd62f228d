"""Elementwise ops as TIR expressions of single elements.

    expression(node, ["b0[v0]", "b1[v0]"])      # the text of the node's element

Values are computed as one of three kinds, whatever their dtype in memory: floats as float32, integers as int64, truth
values as bool. Rounding happens in `narrowed` (what is stored) and in `cast` nodes alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from irx.backends.regions.elements import COMPARISONS, computed_dtype
from irx.backends.tvm_cuda.kernel import STORED
from irx.ir.graph import Literal, Node
from irx.ir.types import INTEGERS, TensorType, is_float

FLOAT, INTEGER, TRUTH = "float32", "int64", "bool"
COMPUTED = ("f32", "bf16", "f16", *INTEGERS, "bool")
MOST_FACTORS = 64  # of a whole power that is multiplied out

Write: TypeAlias = Callable[[Node, list[str]], str]


def kind(dtype: str) -> str:
    """What values of a dtype (weak ones included) are computed in."""
    if dtype in ("bool", "bool_"):
        return TRUTH
    return FLOAT if is_float(dtype) else INTEGER


def supports(node: Node) -> str | None:
    """Why there is no expression for the node; None where there is one."""
    if node.op.name not in _WRITERS:
        return f"TVM's path to CUDA has no {node.op.name}"
    for value in (*node.inputs, *node.outputs):
        if value is None or isinstance(value, Literal):
            continue
        if not isinstance(value.type, TensorType) or value.dtype not in COMPUTED:
            return f"{node.op.name} of {value.type}"
    if node.op.name == "pow" and kind(node.output.dtype) == INTEGER and _whole_power(node) is None:
        return "a power of integers needs a literal exponent"
    return None


def computed_in(node: Node) -> str:
    """The kind that a node computes in: for comparisons that of the operands, else that of the result."""
    return kind(computed_dtype(node))


def wanted_of(node: Node, index: int) -> str:
    """The kind in which a node takes an operand."""
    return TRUTH if node.op.name == "where" and index == 0 else computed_in(node)


def expression(node: Node, operands: list[str]) -> str:
    """The node's element; the operands are of the kinds of `wanted_of`."""
    return _WRITERS[node.op.name](node, operands)


def number(value: float, wanted: str) -> str:
    """A constant of a kind."""
    if wanted == TRUTH:
        return f"T.bool({bool(value)})"
    if wanted == INTEGER:
        return f"T.int64({int(value)})"
    value = float(value)
    return f"T.float32({value!r})" if math.isfinite(value) else f'T.float32("{value}")'


def converted(text: str, source: str, target: str) -> str:
    """A value of kind `source` as one of kind `target`."""
    if source == target:
        return text
    return f"({text} != {number(0, source)})" if target == TRUTH else f'T.cast({text}, "{target}")'


def widened(text: str, dtype: str) -> str:
    """An element as it lies in memory, of its kind."""
    if dtype == "bool":
        return f"({text} != T.uint8(0))"
    return text if STORED[dtype] == kind(dtype) else f'T.cast({text}, "{kind(dtype)}")'


def narrowed(text: str, dtype: str) -> str:
    """A computed value as an element in memory: floats to nearest, ties to even; integers wrap."""
    return text if STORED[dtype] == kind(dtype) else f'T.cast({text}, "{STORED[dtype]}")'


def _wrapped(text: str, dtype: str) -> str:
    """An integer computed in 64 bits as one of its own width."""
    narrow = kind(dtype) == INTEGER and dtype in INTEGERS and dtype != "i64"
    return f'T.cast(T.cast({text}, "{STORED[dtype]}"), "int64")' if narrow else f"({text})"


# --- two operands ---------------------------------------------------------------------------------------------------


def _arithmetic(sign: str, truth: str = "") -> Write:
    def write(node: Node, xs: list[str]) -> str:
        if truth and kind(node.output.dtype) == TRUTH:
            return f"T.{truth}({xs[0]}, {xs[1]})"
        return _wrapped(f"{xs[0]} {sign} {xs[1]}", node.output.dtype)

    return write


def _extreme(sign: str) -> Write:
    def write(node: Node, xs: list[str]) -> str:
        x, y = xs
        if kind(node.output.dtype) == TRUTH:
            return f"T.{'Or' if sign == '>' else 'And'}({x}, {y})"
        chosen = f"{x} {sign} {y}"  # nan where either is: no comparison with one holds
        return f"T.Select({f'T.Or({chosen}, {x} != {x})' if computed_in(node) == FLOAT else chosen}, {x}, {y})"

    return write


def _logic(of_truths: str, of_integers: str) -> Write:
    def write(node: Node, xs: list[str]) -> str:
        if kind(node.output.dtype) != TRUTH:
            return f"T.{of_integers}({xs[0]}, {xs[1]})"
        if of_truths:
            return f"T.{of_truths}({xs[0]}, {xs[1]})"
        return f'(T.cast({xs[0]}, "int32") != T.cast({xs[1]}, "int32"))'

    return write


def _compare(sign: str) -> Write:
    def write(node: Node, xs: list[str]) -> str:
        if computed_in(node) == TRUTH:
            xs = [f'T.cast({x}, "int32")' for x in xs]
        return f"({xs[0]} {sign} {xs[1]})"

    return write


def _floor_div(node: Node, xs: list[str]) -> str:
    if computed_in(node) == FLOAT:
        return f"T.floor({xs[0]} / {xs[1]})"
    return _wrapped(f"T.floordiv({xs[0]}, {_divisor(xs[1])})", node.output.dtype)


def _remainder(node: Node, xs: list[str]) -> str:
    x, y = xs
    if computed_in(node) == FLOAT:
        return f"({x} - {y} * T.floor({x} / {y}))"
    return _wrapped(f"T.floormod({x}, {_divisor(y)})", node.output.dtype)


def _divisor(text: str) -> str:
    """A divisor of 0 counts as 1."""
    return f"T.Select({text} == T.int64(0), T.int64(1), {text})"


def _whole_power(node: Node) -> int | None:
    """The exponent of a power that can be multiplied out."""
    exponent = node.inputs[1]
    value = exponent.value if isinstance(exponent, Literal) else None
    if not isinstance(value, int | float) or value != int(value) or abs(value) > MOST_FACTORS:
        return None
    return int(value) if value >= 0 or kind(node.output.dtype) == FLOAT else None


def _power(node: Node, xs: list[str]) -> str:
    exponent, whole = node.inputs[1], _whole_power(node)
    if whole is not None:
        one = number(1, kind(node.output.dtype))
        product = " * ".join([xs[0]] * abs(whole)) or one
        return _wrapped(product if whole >= 0 else f"{one} / ({product})", node.output.dtype)
    if isinstance(exponent, Literal) and exponent.value in (0.5, -0.5):
        root = f"T.sqrt({xs[0]})"
        return root if exponent.value == 0.5 else f"(T.float32(1) / {root})"
    return f"T.pow({xs[0]}, {xs[1]})"


# --- one operand ----------------------------------------------------------------------------------------------------


def _negate(node: Node, xs: list[str]) -> str:
    if computed_in(node) == FLOAT:
        return f"({xs[0]} * T.float32(-1))"  # 0 - x would lose the sign of zero
    return _wrapped(f"T.int64(0) - {xs[0]}", node.output.dtype)


def _absolute(node: Node, xs: list[str]) -> str:
    if computed_in(node) == FLOAT:
        return f"T.fabs({xs[0]})"
    return f"T.Select({xs[0]} < T.int64(0), T.int64(0) - {xs[0]}, {xs[0]})"


def _sign(node: Node, xs: list[str]) -> str:
    (x,), k = xs, computed_in(node)
    below = f"T.Select({x} < {number(0, k)}, {number(-1, k)}, {x})"  # a zero, and what is no number, stay
    return f"T.Select({x} > {number(0, k)}, {number(1, k)}, {below})"


def _not(node: Node, xs: list[str]) -> str:
    if computed_in(node) == TRUTH:
        return f"T.Not({xs[0]})"
    return _wrapped(f"T.bitwise_xor({xs[0]}, T.int64(-1))", node.output.dtype)


def _rounding(name: str) -> Write:
    return lambda node, xs: f"T.{name}({xs[0]})" if computed_in(node) == FLOAT else xs[0]


def _function(pattern: str) -> Write:
    """An expression of `x`, the operand."""
    return lambda node, xs: pattern.replace("{x}", xs[0])


def _relu(node: Node, xs: list[str]) -> str:
    zero = number(0, computed_in(node))
    return f"T.Select({xs[0]} < {zero}, {zero}, {xs[0]})"


def _cast(node: Node, xs: list[str]) -> str:
    assert node.inputs[0] is not None
    source, target = node.inputs[0].dtype, node.output.dtype
    value = converted(xs[0], kind(source), kind(target))
    if kind(target) == INTEGER:
        return _wrapped(value, target)
    if kind(target) == FLOAT and target not in ("f32", source):
        return widened(narrowed(value, target), target)
    return value


# --- others ---------------------------------------------------------------------------------------------------------

SILU = "({x} / (T.float32(1) + T.exp(T.float32(0) - {x})))"  # 0 where x is far below 0: the divisor is infinite
GELU = "(T.float32(0.5) * {x} * (T.float32(1) + T.erf({x} * T.float32(0.7071067811865476))))"
CUBE = "T.float32(-1.5957691216057308) * ({x} + T.float32(0.044715) * {x} * {x} * {x})"
GELU_TANH = f"({{x}} / (T.float32(1) + T.exp({CUBE})))"


def _gelu_form(node: Node) -> str:
    return GELU_TANH if node.attr("approximate") == "tanh" else GELU


def _clamp(node: Node, xs: list[str]) -> str:
    value, k = xs[0], computed_in(node)
    for name, sign in (("low", "<"), ("high", ">")):
        bound = node.attr(name)
        if isinstance(bound, int | float):
            limit = number(bound, k)
            value = f"T.Select({value} {sign} {limit}, {limit}, {value})"
    return value


_WRITERS: dict[str, Write] = {
    "add": _arithmetic("+", "Or"),
    "sub": _arithmetic("-"),
    "mul": _arithmetic("*", "And"),
    "div": _arithmetic("/"),
    "pow": _power,
    "floor_div": _floor_div,
    "remainder": _remainder,
    "maximum": _extreme(">"),
    "minimum": _extreme("<"),
    **{name: _compare(sign) for name, sign in COMPARISONS.items()},
    "and": _logic("And", "bitwise_and"),
    "or": _logic("Or", "bitwise_or"),
    "xor": _logic("", "bitwise_xor"),
    "not": _not,
    "neg": _negate,
    "abs": _absolute,
    "sign": _sign,
    "floor": _rounding("floor"),
    "ceil": _rounding("ceil"),
    "relu": _relu,
    "exp": _function("T.exp({x})"),
    "log": _function("T.log({x})"),
    "sqrt": _function("T.sqrt({x})"),
    "rsqrt": _function("(T.float32(1) / T.sqrt({x}))"),
    "reciprocal": _function("(T.float32(1) / {x})"),
    "sin": _function("T.sin({x})"),
    "cos": _function("T.cos({x})"),
    "tanh": _function("T.tanh({x})"),
    "sigmoid": _function("(T.float32(1) / (T.float32(1) + T.exp(T.float32(0) - {x})))"),
    "erf": _function("T.erf({x})"),
    "where": lambda node, xs: f"T.Select({xs[0]}, {xs[1]}, {xs[2]})",
    "clamp": _clamp,
    "cast": _cast,
    "silu": _function(SILU),
    "gelu": lambda node, xs: _gelu_form(node).replace("{x}", xs[0]),
    "swiglu": lambda node, xs: f"({SILU.replace('{x}', xs[0])} * {xs[1]})",
    "geglu": lambda node, xs: f"({_gelu_form(node).replace('{x}', xs[0])} * {xs[1]})",
}
