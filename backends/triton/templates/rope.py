"""Heads as kernels take them: loaded from where projections left them, normalised, and rotated by their positions.

A channel's partner in the rotation is loaded a second time, from the cache next to the first, so that one text serves
pairs side by side, pairs half a head apart, and heads that are rotated in part.
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.backends.regions.attention_region import HeadNorm, Heads, Rotation
from irx.backends.triton.templates.attention_arguments import Arguments
from irx.backends.triton.writer import Writer

SIN = (-0.166666552, 0.00833217241, -0.000195164801)  # (sin(r) / r - 1) / r^2 of r^2 on [0, pi / 4]
COS = (0.0416666456, -0.00138873595, 2.44375333e-05)  # (cos(r) - 1 + r^2 / 2) / r^4 of r^2
QUARTER = (1.5703125, 4.837512969970703125e-4, 7.549789948768648e-08)  # pi / 2 in parts of few bits
PER_QUARTER = 0.6366197723675814
ROUNDING = 12582912.0  # 1.5 * 2^23: adding it leaves a float32 no fraction, taking it away the nearest whole number


@dataclass(frozen=True)
class Place:
    """Texts of the batch, head and row of the `rows` heads of a tile, and where there is one: scalars or [M, 1]."""

    rows: int
    b: str
    h: str
    s: str
    mask: str


def emit_heads(w: Writer, arguments: Arguments, heads: Heads, place: Place, width: int, source: str = "") -> str:
    """The name of a float32 tile [M, width] of heads, zero behind their channels and where there is no head.

    They are in the buffer of their view's base, or in that of the parameter `source`.
    """
    d = w.let(f"tl.arange(0, {width})[None, :]", "d")
    inside = place.mask if width == heads.size else f"({place.mask}) & ({d} < {heads.size})"
    source = source or arguments.tensor(heads.view.base)
    index = arguments.index(heads.view, (place.b, place.h, place.s))
    first = w.let(f"{index} + tl.zeros(({place.rows}, 1), tl.int32)", "first")
    value = w.let(f"tl.load({source} + {first} + {d}, mask={inside}, other=0.0).to(tl.float32)", "head")
    factor = ""
    if heads.norm is not None:
        mean = f"tl.sum({value} * {value}, 1, keep_dims=True) * {1 / heads.size!r}"
        factor = w.let(f"1.0 / tl.sqrt_rn({mean} + {heads.norm.eps!r})", "factor")
        value = w.let(_normalised(arguments, heads.norm, value, factor, d, heads.size), "head")
    if heads.rotation is None:
        return value
    partner, sign = _partner(heads.rotation, d)
    partner = w.let(partner, "partner")
    other = w.let(f"tl.load({source} + {first} + {partner}, mask={inside}, other=0.0).to(tl.float32)", "other")
    if heads.norm is not None:
        other = w.let(_normalised(arguments, heads.norm, other, factor, partner, heads.size), "other")
    cosine, sine = _angles(w, arguments, heads.rotation, place, d)
    rotated = f"{value} * {cosine} + {other} * tl.where({sign}, 0.0 - {sine}, {sine})"
    if 2 * heads.rotation.pairs < heads.size:
        rotated = f"tl.where({d} < {2 * heads.rotation.pairs}, {rotated}, {value})"
    return w.let(rotated, "head")


def _normalised(arguments: Arguments, norm: HeadNorm, value: str, factor: str, d: str, size: int) -> str:
    if norm.weight is None:
        return f"{value} * {factor}"
    weight = arguments.tensor(norm.weight)
    return f"{value} * {factor} * tl.load({weight} + {d}, mask={d} < {size}, other=0.0).to(tl.float32)"


def _partner(rotation: Rotation, d: str) -> tuple[str, str]:
    """(the channel that a channel is rotated with, where its sine counts negative)."""
    if rotation.style == "interleaved":
        return f"tl.where({d} < {2 * rotation.pairs}, {d} ^ 1, {d})", f"{d} % 2 == 0"
    pairs = rotation.pairs
    return f"tl.where({d} < {pairs}, {d} + {pairs}, tl.where({d} < {2 * pairs}, {d} - {pairs}, {d}))", f"{d} < {pairs}"


def _angles(w: Writer, arguments: Arguments, rotation: Rotation, place: Place, d: str) -> tuple[str, str]:
    """Cosines and sines of every row and channel, times the rotation's scale."""
    pair = f"{d} // 2" if rotation.style == "interleaved" else f"{d} % {rotation.pairs}"
    frequencies = arguments.tensor(rotation.inv_freq)
    frequency = w.let(f"tl.load({frequencies} + {pair}, mask={d} < {2 * rotation.pairs}, other=0.0)", "frequency")
    view = rotation.positions
    index = f"{arguments.index(view, (place.b, place.s))} + tl.zeros(({place.rows}, 1), tl.int32)"
    loaded = f"tl.load({arguments.tensor(view.base)} + {index}, mask={place.mask}, other=0)"
    position = w.let(f"tl.maximum({loaded}, 0).to(tl.float32)", "position")
    angle = w.let(f"{position} * {frequency}", "angle")
    lost = w.let(f"tl.fma({position}, {frequency}, 0.0 - {angle})", "lost")
    cosine, sine = emit_circular(w, angle, lost)
    if rotation.scale != 1.0:
        cosine, sine = w.let(f"{cosine} * {rotation.scale!r}", "c"), w.let(f"{sine} * {rotation.scale!r}", "s")
    return cosine, sine


def emit_circular(w: Writer, angle: str, lost: str) -> tuple[str, str]:
    """(cos, sin) of `angle + lost`, below about 2**20, where `lost` is what rounding took from the angle.

    The device's own functions put numbers on the stack when an angle is large; these do not. With fused products the
    error is that of float32, whatever the angle.
    """
    turns = w.let(f"({angle} * {PER_QUARTER} + {ROUNDING}) - {ROUNDING}", "turns")
    r = angle
    for part in QUARTER:
        r = w.let(f"tl.fma({turns}, {-part!r}, {r})", "r")
    r = w.let(f"{r} + {lost}", "r")
    quarter = w.let(f"{turns}.to(tl.int32)", "quarter")
    z = w.let(f"{r} * {r}", "z")
    sine = w.let(f"(({SIN[2]!r} * {z} + {SIN[1]!r}) * {z} + {SIN[0]!r}) * {z} * {r} + {r}", "s")
    cosine = w.let(f"(({COS[2]!r} * {z} + {COS[1]!r}) * {z} + {COS[0]!r}) * {z} * {z} - 0.5 * {z} + 1.0", "c")
    c = w.let(f"tl.where(({quarter} & 1) == 0, {cosine}, {sine})", "c")
    s = w.let(f"tl.where(({quarter} & 1) == 0, {sine}, {cosine})", "s")
    c = w.let(f"tl.where((({quarter} + 1) & 2) != 0, 0.0 - {c}, {c})", "c")
    return c, w.let(f"tl.where(({quarter} & 2) != 0, 0.0 - {s}, {s})", "s")
