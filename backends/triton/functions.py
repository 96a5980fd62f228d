"""Functions of float32 blocks that Triton has no word for, or whose short word is not accurate or not safe enough.

Each writes what it needs and gives an expression. `tl.exp` and `tl.log` go through base 2 on the device, which is
accurate to about two units in the last place; the interpreter computes them with numpy.
"""

from __future__ import annotations

from irx.backends.triton.writer import Writer


def exp(w: Writer, x: str) -> str:
    """e to the power of x."""
    return f"tl.exp({x})"


def log(w: Writer, x: str) -> str:
    """The natural logarithm."""
    return f"tl.log({x})"


def sigmoid(w: Writer, x: str) -> str:
    """1 / (1 + exp(-x))."""
    return f"(1.0 / (1.0 + tl.exp(0.0 - {x})))"


def silu(w: Writer, x: str) -> str:
    """x / (1 + exp(-x)): 0 where x is far below 0, because the divisor is infinite there."""
    return f"({x} / (1.0 + tl.exp(0.0 - {x})))"


def tanh(w: Writer, x: str) -> str:
    """Of the size of x, where 1 - tanh(|x|) would lose digits: a polynomial near 0."""
    size = w.let(f"tl.abs({x})")
    falling = w.let(f"tl.exp(-2.0 * {size})")
    far = w.let(f"(1.0 - {falling}) / (1.0 + {falling})")
    square = w.let(f"{x} * {x}")
    inner = f"(0.13333333 + {square} * (-0.05396825 + {square} * (0.02186949 - {square} * 0.00886324)))"
    near = w.let(f"{x} + {x} * {square} * (-0.33333333 + {square} * {inner})")
    return f"tl.where({size} < 0.4, {near}, tl.where({x} < 0, 0.0 - {far}, {far}))"


def gelu(w: Writer, x: str) -> str:
    """x times the share of a normal distribution below x."""
    return f"(0.5 * {x} * (1.0 + tl.erf({x} * 0.7071067811865476)))"


def gelu_tanh(w: Writer, x: str) -> str:
    """The tanh form: x * sigmoid(2 u)."""
    u = w.let(f"1.5957691216057308 * ({x} + 0.044715 * {x} * {x} * {x})")
    return f"({x} / (1.0 + tl.exp(0.0 - {u})))"


def log1p_of_exp(w: Writer, x: str) -> str:
    """log(1 + exp(x)), without overflow; small values keep their digits."""
    small = w.let(f"tl.exp(0.0 - tl.abs({x}))")
    total = w.let(f"1.0 + {small}")
    rest = w.let(f"{total} - 1.0")
    log1p = f"tl.where({rest} == 0.0, {small}, tl.log({total}) * ({small} / tl.where({rest} == 0.0, 1.0, {rest})))"
    return f"(tl.where({x} > 0, {x}, 0.0) + {log1p})"


def power(w: Writer, x: str, y: str) -> str:
    """x to the power of y; of a negative x where y is whole."""
    base, exponent = w.let(f"{x} + 0.0 * {y}"), w.let(f"{y} + 0.0 * {x}")
    size = w.let(f"tl.exp({exponent} * tl.log(tl.abs({base})))")
    whole = w.let(f"tl.floor({exponent}) == {exponent}")
    odd = w.let(f"(tl.floor({exponent} * 0.5) * 2.0 != {exponent})")
    below = w.let(f"tl.where({odd}, 0.0 - {size}, {size})")
    signed = w.let(f"tl.where({base} < 0, tl.where({whole}, {below}, float('nan')), {size})")
    return f"tl.where({exponent} == 0.0, 1.0, {signed})"
