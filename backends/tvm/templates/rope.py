"""Rotation of heads by their positions: cosines and sines of a row's angles once, then all heads of the row.

Angles are products of whole positions and frequencies: they are formed and reduced to a quarter turn in float64, as
positions of long contexts leave a float32 angle few digits.
"""

from __future__ import annotations

import math

from irx.backends.regions.attention_region import HeadNorm, Rotation
from irx.backends.tvm.lanes import Lanes
from irx.backends.tvm.vector_math import COS, SIN
from irx.backends.tvm.writer import Writer, at, splat, widened


def lanes_of(pairs: int) -> int:
    """The widest vector that divides a number of pairs."""
    return next(n for n in (16, 8, 4, 2, 1) if pairs % n == 0)


def angles(w: Writer, rotation: Rotation, frequencies: str, position: str, table: str, start: str) -> None:
    """Put cosines, then sines, of position * frequencies at table[start:], multiplied by the rotation's scale."""
    count = lanes_of(rotation.pairs)
    v = Lanes(w, count)
    with w.block(f"for c in T.serial({rotation.pairs // count}):"):
        wide = v.cast(at(frequencies, f"c * {count}", count), "float64")
        angle = v.let(f"{wide} * {splat(f'T.cast({position}, {chr(34)}float64{chr(34)})', count)}", "float64")
        cosine, sine = circular(v, angle)
        for value, offset in ((cosine, 0), (sine, rotation.pairs)):
            place = at(table, f"{start} + {offset} + c * {count}", count)
            w(f"{place} = {value} * {v.f(rotation.scale)}")


def circular(v: Lanes, angle: str) -> tuple[str, str]:
    """(cos, sin) in float32 of float64 lanes below about 2**30."""
    n = v.let(v.intrinsic("nearbyint", f"{angle} * {v.d(2 / math.pi)}", result="float64"), "float64")
    # Two parts of pi / 2, the first of 33 bits, so that its product with n is exact.
    rest = f"{angle} - {n} * {v.d(1.5707963267341256)} - {n} * {v.d(6.077100506506192e-11)}"
    r = v.let(v.cast(rest, "float32"))
    quarter = v.let(v.cast(n, "int32"), "int32")
    z = v.let(f"{r} * {r}")
    sine = v.let(f"{v.polynomial(z, SIN)} * {z} * {r} + {r}")
    cosine = v.let(f"{v.polynomial(z, COS)} * {z} * {z} - {v.f(0.5)} * {z} + {v.f(1)}")
    odd = f"T.bitwise_and({quarter}, {v.n(1)}) == {v.n(1)}"
    turned = [v.let(v.select(odd, sine, cosine)), v.let(v.select(odd, cosine, sine))]
    signs = [f"T.bitwise_and({quarter} + {v.n(1)}, {v.n(2)})", f"T.bitwise_and({quarter}, {v.n(2)})"]
    pairs = zip(turned, signs, strict=True)
    c, s = (v.let(v.select(f"{sign} == {v.n(0)}", value, f"{v.f(0)} - {value}")) for value, sign in pairs)
    return c, s


def normalise(w: Writer, norm: HeadNorm, dtype: str, weight: str, head: str, start: str, size: int) -> None:
    """head[start:start + size] over its root mean square, times the weight, in place."""
    squares = w.register("T.float32(0)", lanes=1)
    with w.block(f"for d in T.serial({size}):"):
        w(f"{squares} = {squares} + {head}[{start} + d] * {head}[{start} + d]")
    inverse = w.register(
        f"T.float32(1) / T.sqrt({squares} * T.float32({1 / size!r}) + T.float32({norm.eps!r}))", lanes=1
    )
    with w.block(f"for d in T.serial({size}):"):
        factor = "" if norm.weight is None else f" * {widened(f'{weight}[d]', dtype, 1)}"
        w(f"{head}[{start} + d] = {head}[{start} + d] * {inverse}{factor}")


def rotate(w: Writer, rotation: Rotation, table: str, start: str, head: str, at_head: str) -> None:
    """Rotate the first 2 * pairs channels of head[at_head:] in place."""
    pairs, count = rotation.pairs, lanes_of(rotation.pairs)
    with w.block(f"for c in T.serial({pairs // count}):"):
        i = f"c * {count}"
        cosine = w.register(at(table, f"{start} + {i}", count), lanes=count)
        sine = w.register(at(table, f"{start} + {pairs} + {i}", count), lanes=count)
        if rotation.style == "half":
            places = [at(head, f"{at_head} + {i}", count), at(head, f"{at_head} + {pairs} + {i}", count)]
        else:
            places = [_every_second(head, f"{at_head} + {i} * 2 + {odd}", count) for odd in (0, 1)]
        x, y = (w.register(place, lanes=count) for place in places)
        w(f"{places[0]} = {x} * {cosine} - {y} * {sine}")
        w(f"{places[1]} = {y} * {cosine} + {x} * {sine}")


def _every_second(buffer: str, index: str, count: int) -> str:
    return f"{buffer}[T.ramp({index}, 2, {count})]" if count > 1 else f"{buffer}[{index}]"
