"""Elementwise ops as Triton expressions, for epilogues of products and for generated kernels.

    env = {x: w.load("x", place, "bf16"), bias: w.load("b", column, "f32")}
    emit(w, body.nodes, env)                # env now has every result of the nodes
    w.store("y", place, "bf16", env[result])

`env` maps values to texts of blocks: floats are float32 (whatever the tensor's dtype: rounding happens in `store` and
in `cast` nodes alone), integers int64, truth values int1. `Writer.load` and `Writer.store` keep that. Operands must
broadcast against each other as Triton broadcasts. Literals need no entry; one that is a named size does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, MutableMapping
from typing import TypeAlias

from irx.backends.regions.elements import COMPARISONS, computed_dtype
from irx.backends.triton import functions
from irx.backends.triton.writer import ELEMENTS, INTEGERS, Writer
from irx.ir.graph import Literal, Node, Value
from irx.ir.types import TensorType

Env: TypeAlias = MutableMapping[Value, str]
Write: TypeAlias = Callable[[Writer, Node, list[str]], str]

FLOAT, INTEGER, TRUTH = "tl.float32", "tl.int64", "tl.int1"
FLOATS = ("f8e4m3", "f8e5m2", "f16", "bf16", "f32", "float_")
MOST_FACTORS = 64  # of a whole power that is multiplied out


def kind(dtype: str) -> str:
    """What values of a dtype are computed in."""
    if dtype in ("bool", "bool_"):
        return TRUTH
    return FLOAT if dtype in FLOATS else INTEGER


def computes(dtype: str) -> bool:
    """True for dtypes that are computed without loss."""
    return dtype in (*FLOATS, *INTEGERS, "bool", "bool_", "int_")


def supports(node: Node, sizes: bool = False) -> str | None:
    """Why the node cannot be emitted; None where it can. `sizes`: literals that are named sizes have entries."""
    if node.op.name not in _WRITERS:
        return f"{node.op.name} is not elementwise" if not node.op.elementwise else f"no kernel computes {node.op.name}"
    for value in (*node.inputs, *node.outputs):
        if value is None:
            continue
        if isinstance(value, Literal):
            if not sizes and not isinstance(value.value, int | float):
                return f"the operand {value.value} is known only when it runs"
            continue
        if not isinstance(value.type, TensorType) or not computes(value.dtype):
            return f"{node.op.name} of {value.type} is not computed by kernels"
    if node.op.name == "pow" and kind(node.output.dtype) == INTEGER and _whole_power(node) is None:
        return "a power of integers needs a literal exponent"
    return None


def emit(w: Writer, nodes: Iterable[Node], env: Env) -> None:
    """Write code for the nodes in order, reading operands from `env` and entering results there.

    Raises KeyError for an operand without an entry and for a node that `supports` objects to.
    """
    for node in nodes:
        env[node.output] = w.let(_WRITERS[node.op.name](w, node, _operands(w, node, env)))


def number(value: float, wanted: str) -> str:
    """A constant as an expression of a kind."""
    if wanted == TRUTH:
        return "True" if value else "False"
    if wanted == INTEGER:
        return repr(int(value))
    value = float(value)
    return repr(value) if math.isfinite(value) else f"float('{value}')"


def converted(text: str, source: str, target: str) -> str:
    """A value of kind `source` as one of kind `target`."""
    if source == target:
        return text
    if target == TRUTH:
        return f"({text} != 0)"
    return f"({text}).to({target})"


def computed_in(node: Node) -> str:
    """The kind that a node computes in: for comparisons that of the operands, else that of the result."""
    return kind(computed_dtype(node))


def wrapped(text: str, dtype: str) -> str:
    """An integer computed in 64 bits as one of its own width."""
    narrow = kind(dtype) == INTEGER and dtype != "i64"
    return f"({text}).to({ELEMENTS[dtype]}).to({INTEGER})" if narrow else text


def _operands(w: Writer, node: Node, env: Env) -> list[str]:
    """Operands in the kind the op computes in."""
    needed = computed_in(node)
    texts = []
    for index, value in enumerate(node.inputs):
        if value is not None:
            wanted = TRUTH if node.op.name == "where" and index == 0 else needed
            texts.append(_operand(w, value, env, wanted))
    return texts


def _operand(w: Writer, value: Value, env: Env, wanted: str) -> str:
    if isinstance(value, Literal) and value not in env:
        if not isinstance(value.value, int | float):
            raise KeyError(f"the size {value.value} has no entry")
        return number(value.value, wanted)
    text = converted(env[value], kind(value.dtype), wanted)
    return text if text == env[value] else w.let(text)


# --- two operands ---------------------------------------------------------------------------------------------------


def _arithmetic(sign: str, truth: str = "") -> Write:
    def write(w: Writer, node: Node, xs: list[str]) -> str:
        used = truth if truth and kind(node.output.dtype) == TRUTH else sign
        return wrapped(f"{xs[0]} {used} {xs[1]}", node.output.dtype)

    return write


def _extreme(name: str) -> Write:
    def write(w: Writer, node: Node, xs: list[str]) -> str:
        x, y = xs
        if computed_in(node) == FLOAT:  # nan where either is
            return f"tl.{name}({x}, {y}, propagate_nan=tl.PropagateNan.ALL)"
        return f"tl.where({x} {'>' if name == 'maximum' else '<'} {y}, {x}, {y})"

    return write


def _floor_quotient(w: Writer, x: str, y: str) -> tuple[str, str]:
    """(floor(x / y), remainder with the sign of y) of integers; a divisor of 0 counts as 1."""
    divisor = w.let(f"tl.where({y} == 0, 1, {y})")
    quotient = w.let(f"{x} // {divisor}")
    rest = w.let(f"{x} - {quotient} * {divisor}")
    off = w.let(f"tl.where(({rest} != 0) & (({rest} < 0) != ({divisor} < 0)), 1, 0)")
    return f"({quotient} - {off})", f"({rest} + {off} * {divisor})"


def _floor_div(w: Writer, node: Node, xs: list[str]) -> str:
    if computed_in(node) == FLOAT:
        return f"tl.floor({xs[0]} / {xs[1]})"
    return wrapped(_floor_quotient(w, *xs)[0], node.output.dtype)


def _remainder(w: Writer, node: Node, xs: list[str]) -> str:
    x, y = xs
    if computed_in(node) == FLOAT:
        return f"{x} - {y} * tl.floor({x} / {y})"
    return wrapped(_floor_quotient(w, x, y)[1], node.output.dtype)


def _whole_power(node: Node) -> int | None:
    """The exponent of a power that can be multiplied out."""
    exponent = node.inputs[1]
    value = exponent.value if isinstance(exponent, Literal) else None
    if not isinstance(value, int | float) or value != int(value) or abs(value) > MOST_FACTORS:
        return None
    return int(value) if value >= 0 or kind(node.output.dtype) == FLOAT else None


def _power(w: Writer, node: Node, xs: list[str]) -> str:
    exponent, whole = node.inputs[1], _whole_power(node)
    if whole is not None:
        product = _repeated(w, xs[0], abs(whole), kind(node.output.dtype))
        return wrapped(product if whole >= 0 else f"1.0 / {product}", node.output.dtype)
    if isinstance(exponent, Literal) and exponent.value in (0.5, -0.5):
        return f"tl.sqrt_rn({xs[0]})" if exponent.value == 0.5 else f"1.0 / tl.sqrt_rn({xs[0]})"
    return functions.power(w, xs[0], xs[1])


def _repeated(w: Writer, x: str, exponent: int, of: str) -> str:
    """x to a whole power by squaring."""
    result, square = None, x
    while exponent:
        if exponent & 1:
            result = square if result is None else w.let(f"{result} * {square}")
        exponent >>= 1
        square = w.let(f"{square} * {square}") if exponent else square
    return f"({x} * 0 + {number(1, of)})" if result is None else result


# --- one operand ----------------------------------------------------------------------------------------------------


def _negate(w: Writer, node: Node, xs: list[str]) -> str:
    return wrapped(f"{xs[0]} * -1.0" if computed_in(node) == FLOAT else f"0 - {xs[0]}", node.output.dtype)


def _sign(w: Writer, node: Node, xs: list[str]) -> str:
    (x,), k = xs, computed_in(node)
    nonzero = f"tl.where({x} > 0, {number(1, k)}, tl.where({x} < 0, {number(-1, k)}, {number(0, k)}))"
    return nonzero if k != FLOAT else f"tl.where({x} == {x}, {nonzero}, {x})"


def _not(w: Writer, node: Node, xs: list[str]) -> str:
    return f"{xs[0]} == 0" if computed_in(node) == TRUTH else wrapped(f"{xs[0]} ^ -1", node.output.dtype)


def _rounding(name: str) -> Write:
    return lambda w, node, xs: f"tl.{name}({xs[0]})" if computed_in(node) == FLOAT else xs[0]


def _relu(w: Writer, node: Node, xs: list[str]) -> str:
    zero = number(0, computed_in(node))
    return f"tl.where({xs[0]} < {zero}, {zero}, {xs[0]})"


def _function(function: Callable[[Writer, str], str]) -> Write:
    return lambda w, node, xs: function(w, xs[0])


def _gelu_form(node: Node) -> Callable[[Writer, str], str]:
    return functions.gelu_tanh if node.attr("approximate") == "tanh" else functions.gelu


# --- others ---------------------------------------------------------------------------------------------------------


def _clamp(w: Writer, node: Node, xs: list[str]) -> str:
    value, k = xs[0], computed_in(node)
    for name, sign in (("low", "<"), ("high", ">")):
        bound = node.attr(name)
        if isinstance(bound, int | float):
            limit = number(bound, k)
            value = w.let(f"tl.where({value} {sign} {limit}, {limit}, {value})")
    return value


def _cast(w: Writer, node: Node, xs: list[str]) -> str:
    assert node.inputs[0] is not None
    source, target = node.inputs[0].dtype, node.output.dtype
    value = converted(xs[0], kind(source), kind(target))
    if kind(target) == INTEGER:
        return wrapped(value, target)
    if kind(target) == FLOAT and target not in ("f32", source):
        return f"({value}).to({ELEMENTS[target]}).to({FLOAT})"
    return value


def _compare(sign: str) -> Write:
    return lambda w, node, xs: f"{xs[0]} {sign} {xs[1]}"


_WRITERS: dict[str, Write] = {
    "add": _arithmetic("+", "|"),
    "sub": _arithmetic("-"),
    "mul": _arithmetic("*", "&"),
    "div": lambda w, node, xs: f"tl.div_rn({xs[0]}, {xs[1]})" if _blocks(node) else f"{xs[0]} / {xs[1]}",
    "pow": _power,
    "floor_div": _floor_div,
    "remainder": _remainder,
    "maximum": _extreme("maximum"),
    "minimum": _extreme("minimum"),
    **{name: _compare(sign) for name, sign in COMPARISONS.items()},
    "and": _compare("&"),
    "or": _compare("|"),
    "xor": _compare("^"),
    "not": _not,
    "neg": _negate,
    "abs": lambda w, node, xs: f"tl.abs({xs[0]})",
    "sign": _sign,
    "floor": _rounding("floor"),
    "ceil": _rounding("ceil"),
    "relu": _relu,
    "exp": _function(functions.exp),
    "log": _function(functions.log),
    "sqrt": lambda w, node, xs: f"tl.sqrt_rn({xs[0]})",
    "rsqrt": lambda w, node, xs: f"1.0 / tl.sqrt_rn({xs[0]})",
    "reciprocal": lambda w, node, xs: f"1.0 / {xs[0]}",
    "sin": lambda w, node, xs: f"tl.sin({xs[0]})",
    "cos": lambda w, node, xs: f"tl.cos({xs[0]})",
    "tanh": _function(functions.tanh),
    "sigmoid": _function(functions.sigmoid),
    "erf": lambda w, node, xs: f"tl.erf({xs[0]})",
    "softplus": _function(functions.log1p_of_exp),
    "where": lambda w, node, xs: f"tl.where({xs[0]}, {xs[1]}, {xs[2]})",
    "clamp": _clamp,
    "cast": _cast,
    "silu": _function(functions.silu),
    "gelu": lambda w, node, xs: _gelu_form(node)(w, xs[0]),
    "swiglu": lambda w, node, xs: f"{functions.silu(w, xs[0])} * {xs[1]}",
    "geglu": lambda w, node, xs: f"{_gelu_form(node)(w, xs[0])} * {xs[1]}",
}


def _blocks(node: Node) -> bool:
    """True where both operands are tensors: rounding division takes no plain numbers."""
    return not any(isinstance(value, Literal) for value in node.inputs)
