"""Functions of float32 lanes as polynomials: a call to the C library would compute lane after lane.

All take the text of a value and give that of the result, to a few units in the last place (relative error below 4e-7);
infinities, nan and both zeros come out as in C. Coefficients are minimax fits on the reduced range. Results that are
not normal numbers become zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from irx.backends.tvm.lanes import Lanes
from irx.backends.tvm.writer import LANES, Writer, at

LOG2_E = math.log2(math.e)
LN2 = math.log(2)
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4  # few bits above, so that products with exponents are exact

EXP = (0.500002325, 0.166631699, 0.0418558493, 0.00786695909, 0.00191336253)  # (e^r - 1 - r) / r^2 on [0, ln 2]
EXPM1 = (0.5, 0.16666542, 0.0416662768, 0.00836677011, 0.00139467721)  # likewise on [-ln 2 / 2, ln 2 / 2]
LOG = (  # (log(1 + f) - f + f^2 / 2) / f^3 on [sqrt(1/2) - 1, sqrt(2) - 1]
    0.333333164,
    -0.250008106,
    0.200022861,
    -0.166245535,
    0.141811922,
    -0.131287545,
    0.128816485,
    -0.0785961524,
)
SIN = (-0.166666552, 0.00833217241, -0.000195164801)  # (sin(r) / r - 1) / r^2 of r^2 on [0, pi / 4]
COS = (0.0416666456, -0.00138873595, 2.44375333e-05)  # (cos(r) - 1 + r^2 / 2) / r^4 of r^2
ERF_SMALL = (  # erf(x) / x of x^2 where |x| < 0.9
    1.12837923,
    -0.376126349,
    0.112837151,
    -0.0268605091,
    0.00520385895,
    -0.000817563967,
    8.51310469e-05,
)
ERF_LARGE = (  # -log(erfc(t)) on [0.9, 4]
    0.000166447615,
    1.12779725,
    0.636976063,
    0.104113683,
    -0.0223152135,
    0.0030654904,
    -0.00019821967,
)
ERFC = (  # -log(erfc(t)) / t on [0, 4.2]; above it grows without bound
    1.12837923,
    0.636619925,
    0.102770299,
    -0.0191128347,
    -0.000264925737,
    0.00181539997,
    -0.000753242115,
    0.000173112872,
    -2.26929787e-05,
    1.32342757e-06,
)
HALF_PI = (1.570796325802803, 9.920935739593517e-10, 5.72118872647008e-18)  # the first two of 27 bits each


def exp(w: Writer, x: str, lanes: int = LANES) -> str:
    """e^x."""
    v = Lanes(w, lanes)
    bounded = v.let(v.at_least(v.let(v.at_most(x, v.f(89.0))), v.f(-88.0)))
    n = v.let(v.intrinsic("floor", f"{bounded} * {v.f(LOG2_E)}"))
    r = v.let(f"{bounded} - {n} * {v.f(LN2_HIGH)} - {n} * {v.f(LN2_LOW)}")
    return v.let(f"{_exp_of_rest(v, r)} * {_power_of_two(v, n)}")


def exp2(w: Writer, x: str, lanes: int = LANES) -> str:
    """2^x."""
    v = Lanes(w, lanes)
    bounded = v.let(v.at_least(v.let(v.at_most(x, v.f(128.0))), v.f(-127.0)))
    n = v.let(v.intrinsic("floor", bounded))
    r = v.let(f"({bounded} - {n}) * {v.f(LN2)}")
    return v.let(f"{_exp_of_rest(v, r)} * {_power_of_two(v, n)}")


def _exp_of_rest(v: Lanes, r: str) -> str:
    return v.let(f"{v.polynomial(r, EXP)} * {r} * {r} + {r} + {v.f(1)}")


def _power_of_two(v: Lanes, n: str) -> str:
    """2^n for whole n: 0 below -126, infinity above 127."""
    exponent = f"{v.cast(n, 'int32')} + {v.n(127)}"
    return v.let(v.bits(f"T.shift_left({exponent}, {v.n(23)})", "float32"))


def log(w: Writer, x: str, lanes: int = LANES) -> str:
    """The natural logarithm; -inf at 0, nan below."""
    v = Lanes(w, lanes)
    tiny = f"{x} < {v.f(2.0**-126)}"
    scaled = v.let(v.select(tiny, f"{x} * {v.f(2.0**23)}", x))
    e, m = _split(v, scaled)
    exponent = v.let(f"{e} - {v.select(tiny, v.f(23), v.f(0))}")
    f = v.let(f"{m} - {v.f(1)}")
    square = v.let(f"{f} * {f}")
    rest = v.let(f"{v.polynomial(f, LOG)} * {f} * {square} - {v.f(0.5)} * {square} + {exponent} * {v.f(LN2_LOW)}")
    value = v.let(f"{rest} + {f} + {exponent} * {v.f(LN2_HIGH)}")
    positive = v.let(v.select(f"{x} < {v.f(math.inf)}", value, x))  # infinity and nan stay
    zero = v.let(v.select(f"{x} == {v.f(0)}", v.f(-math.inf), v.f(math.nan)))
    return v.let(v.select(f"{x} <= {v.f(0)}", zero, positive))


def _split(v: Lanes, x: str) -> tuple[str, str]:
    """(e, m) as float32 with x = m * 2^e and m in [sqrt(1/2), sqrt(2)), for positive normal x."""
    bits = v.let(v.bits(x, "int32"), "int32")
    e = v.let(f"T.shift_right({bits} - {v.n(0x3F3504F3)}, {v.n(23)})", "int32")
    m = v.let(v.bits(f"{bits} - T.shift_left({e}, {v.n(23)})", "float32"))
    return v.let(v.cast(e, "float32")), m


def log1p_of_exp(w: Writer, x: str, lanes: int = LANES) -> str:
    """log(1 + e^x) without overflow, accurate in both tails."""
    v = Lanes(w, lanes)
    small = exp(w, v.let(f"{v.f(0)} - {_absolute(v, x)}"), lanes)
    one = v.let(f"{small} + {v.f(1)}")
    lost = v.let(f"({small} - ({one} - {v.f(1)})) / {one}")  # what rounding 1 + small lost
    return v.let(f"{v.at_least(x, v.f(0))} + ({log(w, one, lanes)} + {lost})")


def tanh(w: Writer, x: str, lanes: int = LANES) -> str:
    """The hyperbolic tangent, as (e^2x - 1) / (e^2x + 1)."""
    v = Lanes(w, lanes)
    a = v.let(f"{v.at_most(_absolute(v, x), v.f(10))} * {v.f(2)}")
    n = v.let(v.intrinsic("nearbyint", f"{a} * {v.f(LOG2_E)}"))
    r = v.let(f"{a} - {n} * {v.f(LN2_HIGH)} - {n} * {v.f(LN2_LOW)}")
    rest = v.let(f"{v.polynomial(r, EXPM1)} * {r} * {r} + {r}")
    scale = _power_of_two(v, n)
    minus_one = v.let(f"{scale} * {rest} + ({scale} - {v.f(1)})")
    return v.let(v.intrinsic("copysign", v.let(f"{minus_one} / ({minus_one} + {v.f(2)})"), x))


def sigmoid(w: Writer, x: str, lanes: int = LANES) -> str:
    """1 / (1 + e^-x)."""
    v = Lanes(w, lanes)
    return v.let(f"{v.f(1)} / ({v.f(1)} + {exp(w, v.let(f'{v.f(0)} - {x}'), lanes)})")


def silu(w: Writer, x: str, lanes: int = LANES) -> str:
    """x / (1 + e^-x)."""
    v = Lanes(w, lanes)
    return v.let(f"{x} / ({v.f(1)} + {exp(w, v.let(f'{v.f(0)} - {x}'), lanes)})")


def erf(w: Writer, x: str, lanes: int = LANES) -> str:
    """The error function: an odd polynomial near 0, 1 - exp(-polynomial) beyond."""
    v = Lanes(w, lanes)
    t = v.let(v.at_most(_absolute(v, x), v.f(4)))
    near = v.let(f"{v.polynomial(v.let(f'{t} * {t}'), ERF_SMALL)} * {t}")
    far = v.let(f"{v.f(1)} - {exp(w, v.let(f'{v.f(0)} - {v.polynomial(t, ERF_LARGE)}'), lanes)}")
    return v.let(v.intrinsic("copysign", v.let(v.select(f"{t} < {v.f(0.9)}", near, far)), x))


def gelu(w: Writer, x: str, lanes: int = LANES) -> str:
    """x times the normal distribution function, by erfc, which loses nothing for negative x."""
    v = Lanes(w, lanes)
    t = v.let(f"{_absolute(v, x)} * {v.f(math.sqrt(0.5))}")
    tail = exp(w, v.let(f"{v.f(0)} - {v.polynomial(t, ERFC)} * {t}"), lanes)
    below = v.let(f"{tail} * {v.f(0.5)} * {x}")
    inside = v.let(v.select(f"{x} > {v.f(0)}", f"{x} - {below}", below))
    return v.let(v.select(f"{x} > {v.f(6)}", x, inside))  # infinity stays


def gelu_tanh(w: Writer, x: str, lanes: int = LANES) -> str:
    """gelu by its tanh formula: x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 x^3))."""
    v = Lanes(w, lanes)
    scale = -2 * math.sqrt(2 / math.pi)
    inner = v.let(f"{x} * ({v.f(0.044715 * scale)} * {x} * {x} + {v.f(scale)})")
    return v.let(f"{x} / ({v.f(1)} + {exp(w, inner, lanes)})")


def sin(w: Writer, x: str, lanes: int = LANES) -> str:
    """The sine of radians; up to 1e8 the absolute error is below 1e-7, far beyond it says nothing but stays bounded."""
    return _circular(Lanes(w, lanes), x, 0)


def cos(w: Writer, x: str, lanes: int = LANES) -> str:
    """The cosine of radians, as exact as `sin`."""
    return _circular(Lanes(w, lanes), x, 1)


def _circular(v: Lanes, x: str, shift: int) -> str:
    """sin(x + shift * pi / 2). The range is reduced in float64: angles of positions are large."""
    wide = v.let(v.cast(x, "float64"), "float64")
    n = v.let(v.intrinsic("nearbyint", f"{wide} * {v.d(2 / math.pi)}", result="float64"), "float64")
    high, middle, low = (v.d(part) for part in HALF_PI)
    rest = v.let(v.cast(f"{wide} - {n} * {high} - {n} * {middle} - {n} * {low}", "float32"))
    r = v.let(v.at_least(v.let(v.at_most(rest, v.f(0.8))), v.f(-0.8)))  # where the range cannot be reduced
    turns = v.intrinsic("floor", f"{n} * {v.d(0.25)}", result="float64")
    quarter = v.let(f"{v.cast(f'{n} - {turns} * {v.d(4)}', 'int32')} + {v.n(shift)}", "int32")
    z = v.let(f"{r} * {r}")
    sine = v.let(f"{v.polynomial(z, SIN)} * {z} * {r} + {r}")
    cosine = v.let(f"{v.polynomial(z, COS)} * {z} * {z} - {v.f(0.5)} * {z} + {v.f(1)}")
    value = v.let(v.select(f"T.bitwise_and({quarter}, {v.n(1)}) == {v.n(0)}", sine, cosine))
    return v.let(v.select(f"T.bitwise_and({quarter}, {v.n(2)}) == {v.n(0)}", value, f"{v.f(0)} - {value}"))


def rsqrt(w: Writer, x: str, lanes: int = LANES) -> str:
    """1 / sqrt(x)."""
    v = Lanes(w, lanes)
    return v.let(f"{v.f(1)} / T.sqrt({x})")


def power(w: Writer, x: str, y: str, lanes: int = LANES) -> str:
    """x^y; the logarithm is taken in float64, as its error is multiplied by y. nan for x < 0 unless y is whole."""
    v = Lanes(w, lanes)
    logarithm = _wide_log(v, _absolute(v, x))
    t = v.let(f"{logarithm} * {v.cast(y, 'float64')}", "float64")
    above = v.let(v.at_least(t, v.d(-88.0)), "float64")
    bounded = v.let(v.at_most(above, v.d(89.0)), "float64")
    n = v.let(v.intrinsic("floor", f"{bounded} * {v.d(LOG2_E)}", result="float64"), "float64")
    r = v.let(v.cast(f"{bounded} - {n} * {v.d(LN2)}", "float32"))
    value = v.let(f"{_exp_of_rest(v, r)} * {_power_of_two(v, v.let(v.cast(n, 'float32')))}")
    whole = f"{v.intrinsic('floor', y)} == {y}"
    odd = f"{v.intrinsic('floor', f'{y} * {v.f(0.5)}')} * {v.f(2)} != {y}"
    negative = v.let(v.select(whole, v.select(odd, f"{v.f(0)} - {value}", value), v.f(math.nan)))
    signed = v.let(v.select(f"{x} < {v.f(0)}", negative, value))
    return v.let(v.select(f"{y} == {v.f(0)}", v.f(1), signed))


def _wide_log(v: Lanes, x: str) -> str:
    """log(x) in float64 for x >= 0, by the series of artanh."""
    tiny = f"{x} < {v.f(2.0**-126)}"
    e, m = _split(v, v.let(v.select(tiny, f"{x} * {v.f(2.0**23)}", x)))
    wide = v.let(v.cast(m, "float64"), "float64")
    s = v.let(f"({wide} - {v.d(1)}) / ({wide} + {v.d(1)})", "float64")
    z = v.let(f"{s} * {s}", "float64")
    series = v.d(1 / 13)
    for k in (11, 9, 7, 5, 3, 1):
        series = v.let(f"{series} * {z} + {v.d(1 / k)}", "float64")
    exponent = v.cast(f"{e} - {v.select(tiny, v.f(23), v.f(0))}", "float64")
    value = v.let(f"{exponent} * {v.d(LN2)} + {v.d(2)} * {s} * {series}", "float64")
    bounded = v.let(v.select(f"{x} < {v.f(math.inf)}", value, v.cast(x, "float64")), "float64")
    return v.let(v.select(f"{x} == {v.f(0)}", v.d(-math.inf), bounded), "float64")


def _absolute(v: Lanes, x: str) -> str:
    return v.let(v.intrinsic("fabs", x))


def sum_lanes(w: Writer, x: str, lanes: int = LANES) -> str:
    """The sum of all lanes as a scalar; halves are added, as the plain reduction would add lane after lane."""
    return _halved(w, x, lanes, lambda a, b: f"{a} + {b}")


def max_lanes(w: Writer, x: str, lanes: int = LANES) -> str:
    """The largest lane as a scalar; a nan may get lost."""
    return _halved(w, x, lanes, lambda a, b: f"T.Select({a} > {b}, {a}, {b})")


def min_lanes(w: Writer, x: str, lanes: int = LANES) -> str:
    """The smallest lane as a scalar; a nan may get lost."""
    return _halved(w, x, lanes, lambda a, b: f"T.Select({a} < {b}, {a}, {b})")


def _halved(w: Writer, x: str, lanes: int, combine: Callable[[str, str], str]) -> str:
    value = w.register(x, lanes=lanes)
    while lanes > 1:
        lanes //= 2
        name = value.partition("[")[0]
        value = w.register(combine(at(name, "0", lanes), at(name, str(lanes), lanes)), lanes=lanes)
    return value
