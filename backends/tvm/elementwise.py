"""Elementwise ops as vector code, for epilogues of products and for generated kernels.

    env = {x: w.load("x", place, "bf16"), bias: w.load("b", column, "f32")}
    emit(w, body.nodes, env)                # env now has every result of the nodes
    store(w, "y", place, "bf16", env[result])

`env` maps values to texts of lanes: floats are float32 (whatever the tensor's dtype: rounding happens in `store` and in
`cast` nodes alone), integers int64, booleans int32 of 0 or 1. `load` and `store` (from `lanes`) keep that. Literals
need no entry; one that is a named size does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from typing import TypeAlias

from irx.backends.regions.elements import COMPARISONS, computed_dtype
from irx.backends.tvm import vector_math
from irx.backends.tvm.lanes import COMPUTED, FLOAT, INTEGER, TRUTH, Lanes, kind, load, store
from irx.backends.tvm.writer import LANES, STORAGE, Writer, narrowed, widened
from irx.ir.graph import Literal, Node, Value
from irx.ir.types import TensorType

__all__ = ["emit", "load", "store", "supports"]

Env: TypeAlias = MutableMapping[Value, str]
Write: TypeAlias = Callable[[Lanes, Node, list[str]], str]
MOST_FACTORS = 64  # of a whole power that is multiplied out


def supports(node: Node, sizes: bool = False) -> str | None:
    """Why the node cannot be emitted; None where it can. `sizes`: literals that are named sizes have entries."""
    if node.op.name not in _WRITERS:
        return f"{node.op.name} is not elementwise" if not node.op.elementwise else f"no lanes for {node.op.name}"
    for value in (*node.inputs, *node.outputs):
        if value is None:
            continue
        if isinstance(value, Literal):
            if not sizes and not isinstance(value.value, int | float):
                return f"the operand {value.value} is known only when it runs"
            continue
        if not isinstance(value.type, TensorType) or value.dtype not in COMPUTED:
            return f"{node.op.name} of {value.type} is not computed in lanes"
    if node.op.name == "pow" and kind(node.output.dtype) == INTEGER and _small_power(node) is None:
        return "a power of integers needs a literal exponent"
    return None


def emit(w: Writer, nodes: Iterable[Node], env: Env, lanes: int = LANES) -> None:
    """Write code for the nodes in order, reading operands from `env` and entering results there.

    Raises KeyError for an operand without an entry and for a node that `supports` objects to.
    """
    v = Lanes(w, lanes)
    for node in nodes:
        write = _WRITERS[node.op.name]
        env[node.output] = v.let(write(v, node, _operands(v, node, env)), kind(node.output.dtype))


def _operands(v: Lanes, node: Node, env: Env) -> list[str]:
    """Operands in the kind the op computes in."""
    needed = computed_in(node)
    texts = []
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        wanted = TRUTH if node.op.name == "where" and index == 0 else needed
        texts.append(_operand(v, value, env, wanted))
    return texts


def computed_in(node: Node) -> str:
    """The kind of lanes that a node computes in: for comparisons that of the operands, else that of the result."""
    return kind(computed_dtype(node))


def _operand(v: Lanes, value: Value, env: Env, wanted: str) -> str:
    if isinstance(value, Literal) and value not in env:
        if not isinstance(value.value, int | float):
            raise KeyError(f"the size {value.value} has no entry")
        return v.number(value.value, wanted)
    text = v.converted(env[value], kind(value.dtype), wanted)
    return text if text == env[value] else v.let(text, wanted)


# --- two operands ---------------------------------------------------------------------------------------------------


def _arithmetic(sign: str) -> Write:
    def write(v: Lanes, node: Node, xs: list[str]) -> str:
        return v.wrapped(f"({xs[0]} {sign} {xs[1]})", node.output.dtype)

    return write


def _multiply(v: Lanes, node: Node, xs: list[str]) -> str:
    if kind(node.output.dtype) == TRUTH:
        return f"T.bitwise_and({xs[0]}, {xs[1]})"
    return v.wrapped(f"({xs[0]} * {xs[1]})", node.output.dtype)


def _add(v: Lanes, node: Node, xs: list[str]) -> str:
    if kind(node.output.dtype) == TRUTH:
        return f"T.bitwise_or({xs[0]}, {xs[1]})"
    return v.wrapped(f"({xs[0]} + {xs[1]})", node.output.dtype)


def _extreme(sign: str) -> Write:
    def write(v: Lanes, node: Node, xs: list[str]) -> str:
        x, y = xs
        first = v.select(f"{x} {sign} {y}", x, y)  # y where either is nan
        return first if computed_in(node) != FLOAT else v.select(f"{x} == {x}", v.let(first), x)

    return write


def _compare(sign: str) -> Write:
    return lambda v, node, xs: v.truth(f"{xs[0]} {sign} {xs[1]}")


def _bitwise(name: str) -> Write:
    return lambda v, node, xs: f"T.bitwise_{name}({xs[0]}, {xs[1]})"


def _floor_quotient(v: Lanes, x: str, y: str) -> tuple[str, str]:
    """(floor(x / y), remainder with the sign of y) of integers; a divisor of 0 counts as 1."""
    divisor = v.let(v.select(f"{y} == {v.i(0)}", v.i(1), y), INTEGER)
    quotient = v.let(f"T.truncdiv({x}, {divisor})", INTEGER)
    rest = v.let(f"{x} - {quotient} * {divisor}", INTEGER)
    differs = f"T.bitwise_xor({rest}, {divisor}) < {v.i(0)}"
    off = v.let(v.select(differs, v.select(f"{rest} == {v.i(0)}", v.i(0), v.i(1)), v.i(0)), INTEGER)
    return f"({quotient} - {off})", f"({rest} + {off} * {divisor})"


def _floor_div(v: Lanes, node: Node, xs: list[str]) -> str:
    if computed_in(node) == FLOAT:
        return v.intrinsic("floor", f"{xs[0]} / {xs[1]}")
    return v.wrapped(_floor_quotient(v, *xs)[0], node.output.dtype)


def _remainder(v: Lanes, node: Node, xs: list[str]) -> str:
    x, y = xs
    if computed_in(node) == FLOAT:
        return f"({x} - {y} * {v.let(v.intrinsic('floor', f'{x} / {y}'))})"
    return v.wrapped(_floor_quotient(v, x, y)[1], node.output.dtype)


def _small_power(node: Node) -> int | None:
    """The exponent of a power that can be multiplied out."""
    exponent = node.inputs[1]
    number = exponent.value if isinstance(exponent, Literal) else None
    whole = isinstance(number, int | float) and number == int(number) and abs(number) <= MOST_FACTORS
    return int(number) if whole and (number >= 0 or kind(node.output.dtype) == FLOAT) else None  # type: ignore[operator,arg-type]


def _power(v: Lanes, node: Node, xs: list[str]) -> str:
    exponent = node.inputs[1]
    whole = _small_power(node)
    if whole is not None:
        product = _repeated(v, xs[0], abs(whole), kind(node.output.dtype))
        return v.wrapped(product if whole >= 0 else f"({v.f(1)} / {product})", node.output.dtype)
    if isinstance(exponent, Literal) and exponent.value == 0.5:
        return f"T.sqrt({xs[0]})"
    if isinstance(exponent, Literal) and exponent.value == -0.5:
        return vector_math.rsqrt(v.w, xs[0], v.count)
    return vector_math.power(v.w, xs[0], xs[1], v.count)


def _repeated(v: Lanes, x: str, exponent: int, lanes_kind: str) -> str:
    """x to a whole power by squaring."""
    result, square = None, x
    while exponent:
        if exponent & 1:
            result = square if result is None else v.let(f"{result} * {square}", lanes_kind)
        exponent >>= 1
        square = v.let(f"{square} * {square}", lanes_kind) if exponent else square
    return v.number(1, lanes_kind) if result is None else result


# --- one operand ----------------------------------------------------------------------------------------------------


def _negate(v: Lanes, node: Node, xs: list[str]) -> str:
    if computed_in(node) == FLOAT:
        return f"({xs[0]} * {v.f(-1)})"  # 0 - x would lose the sign of zero
    return v.wrapped(f"({v.i(0)} - {xs[0]})", node.output.dtype)


def _absolute(v: Lanes, node: Node, xs: list[str]) -> str:
    if computed_in(node) == FLOAT:
        return v.intrinsic("fabs", xs[0])
    zero = v.number(0, computed_in(node))
    return v.select(f"{xs[0]} < {zero}", f"{zero} - {xs[0]}", xs[0])


def _sign(v: Lanes, node: Node, xs: list[str]) -> str:
    x, k = xs[0], computed_in(node)
    one, zero = v.number(1, k), v.number(0, k)
    nonzero = v.select(f"{x} > {zero}", one, v.select(f"{x} < {zero}", v.number(-1, k), zero))
    return nonzero if k != FLOAT else v.select(f"{x} == {x}", nonzero, x)


def _not(v: Lanes, node: Node, xs: list[str]) -> str:
    ones = v.n(1) if computed_in(node) == TRUTH else v.i(-1)
    return v.wrapped(f"T.bitwise_xor({xs[0]}, {ones})", node.output.dtype)


def _rounding(name: str) -> Write:
    return lambda v, node, xs: v.intrinsic(name, xs[0]) if computed_in(node) == FLOAT else xs[0]


def _relu(v: Lanes, node: Node, xs: list[str]) -> str:
    return v.at_least(xs[0], v.number(0, computed_in(node)))


def _function(function: Callable[[Writer, str, int], str]) -> Write:
    return lambda v, node, xs: function(v.w, xs[0], v.count)


def _gelu_form(node: Node) -> Callable[[Writer, str, int], str]:
    return vector_math.gelu_tanh if node.attr("approximate") == "tanh" else vector_math.gelu


def _gelu(v: Lanes, node: Node, xs: list[str]) -> str:
    return _gelu_form(node)(v.w, xs[0], v.count)


# --- others ---------------------------------------------------------------------------------------------------------


def _geglu(v: Lanes, node: Node, xs: list[str]) -> str:
    return f"({_gelu_form(node)(v.w, xs[0], v.count)} * {xs[1]})"


def _swiglu(v: Lanes, node: Node, xs: list[str]) -> str:
    return f"({vector_math.silu(v.w, xs[0], v.count)} * {xs[1]})"


def _where(v: Lanes, node: Node, xs: list[str]) -> str:
    return v.select(v.holds(xs[0]), xs[1], xs[2])


def _clamp(v: Lanes, node: Node, xs: list[str]) -> str:
    value, k = xs[0], computed_in(node)
    for name, limit in (("low", v.at_least), ("high", v.at_most)):
        bound = node.attr(name)
        if isinstance(bound, int | float):
            value = v.let(limit(value, v.number(bound, k)), k)
    return value


def _cast(v: Lanes, node: Node, xs: list[str]) -> str:
    assert node.inputs[0] is not None
    source, target = node.inputs[0].dtype, node.output.dtype
    value = v.converted(xs[0], kind(source), kind(target))
    if kind(target) == INTEGER:
        return v.wrapped(value, target)
    if kind(target) == FLOAT and target not in ("f32", source):
        stored = v.let(narrowed(v.w, value, target, v.count), STORAGE[target])
        return widened(stored, target, v.count)
    return value


_WRITERS: dict[str, Write] = {
    "add": _add,
    "sub": _arithmetic("-"),
    "mul": _multiply,
    "div": _arithmetic("/"),
    "pow": _power,
    "floor_div": _floor_div,
    "remainder": _remainder,
    "maximum": _extreme(">"),
    "minimum": _extreme("<"),
    **{name: _compare(sign) for name, sign in COMPARISONS.items()},
    "and": _bitwise("and"),
    "or": _bitwise("or"),
    "xor": _bitwise("xor"),
    "not": _not,
    "neg": _negate,
    "abs": _absolute,
    "sign": _sign,
    "floor": _rounding("floor"),
    "ceil": _rounding("ceil"),
    "relu": _relu,
    "exp": _function(vector_math.exp),
    "log": _function(vector_math.log),
    "sqrt": lambda v, node, xs: f"T.sqrt({xs[0]})",
    "rsqrt": _function(vector_math.rsqrt),
    "reciprocal": lambda v, node, xs: f"({v.f(1)} / {xs[0]})",
    "sin": _function(vector_math.sin),
    "cos": _function(vector_math.cos),
    "tanh": _function(vector_math.tanh),
    "sigmoid": _function(vector_math.sigmoid),
    "erf": _function(vector_math.erf),
    "softplus": _function(vector_math.log1p_of_exp),
    "where": _where,
    "clamp": _clamp,
    "cast": _cast,
    "silu": _function(vector_math.silu),
    "gelu": _gelu,
    "swiglu": _swiglu,
    "geglu": _geglu,
}
