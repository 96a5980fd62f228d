"""raise-rope: rotary position embedding, spelled out, becomes `rope` over integer positions and inverse frequencies.

Before:

    %f = irx.mul(%p, $inv_freq) : f32[1, S, 8]               // p: positions as f32[1, S, 1]
    %a = irx.concat(%f, %f) {axis=2} : f32[1, S, 16]
    %c = irx.reshape(irx.cos(%a)) : f32[1, 1, S, 16]         // and %s of irx.sin(%a)
    %l = irx.slice(%x) {axis=3, stop=8} : f32[B, 4, S, 8]
    %h = irx.slice(%x) {axis=3, start=8} : f32[B, 4, S, 8]
    %r = irx.concat(irx.neg(%h), %l) {axis=3} : f32[B, 4, S, 16]
    %y = irx.add(irx.mul(%x, %c), irx.mul(%r, %s)) : f32[B, 4, S, 16]

After:

    %y = irx.rope(%x, %positions, $inv_freq) : f32[B, 4, S, 16]

Four spellings: the rotation by a half as above, with channels that pass through (`concat` of a rotated and a plain
slice), by two halves computed apart and joined, and of neighbouring pairs; heads before positions or behind. A factor
on cos and sin becomes `scale`, casts around the tables are looked through.
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.analysis.precision import holds
from irx.ir.dims import Dim
from irx.ir.graph import Builder, Node, Value
from irx.ir.program import Program
from irx.ir.types import INTEGERS
from irx.pipeline.base import Context, Effect, Pass, Report, Stage
from irx.rewrite.conditions import along_last_axis, floats, integers, widened
from irx.rewrite.match import Match
from irx.rewrite.patterns import Pattern, any_value, constant, maybe, named, number, one_of, op, product, through
from irx.rewrite.rewriter import Refused, Rewriter, Rule


@dataclass(frozen=True)
class RaiseRope(Pass):
    """Recognise rotary position embedding in all its spellings."""

    name = "raise-rope"
    stage = Stage.NORMALIZE
    effect = Effect.ROUNDING

    def run(self, program: Program, ctx: Context) -> Report:
        return Rewriter(self.name, _RULES, evaluate=ctx.evaluate, fuel=ctx.fuel).run(program)


def _exact(value: Value) -> str | None:
    """Positions stay whole numbers in f32, not in narrower floats."""
    return None if value.dtype in ("f32", "f64", *INTEGERS) else f"positions are rounded to {value.dtype}"


def _part(x: Pattern, start: int | None, step: int = 1) -> Pattern:
    """A slice of the last axis; `start` None is a start behind 0."""

    def starts(node: Node) -> str | None:
        right = node.attr("start") != 0 if start is None else node.attr("start") == start
        return along_last_axis(node) or (None if right else f"starts at {node.attr('start')}")

    return op("slice", x, where=starts, attrs={"step": step})


# --- the tables -------------------------------------------------------------------------------------------------------

_SHAPES = ("reshape", "expand")
_POSITIONS = through(any_value("positions", integers), ("cast", *_SHAPES), where=_exact)
_FREQUENCIES = through(constant("inv_freq"), _SHAPES)
_OUTER = op("matmul", _FREQUENCIES, _POSITIONS)
_ANGLES = one_of(op("mul", _POSITIONS, _FREQUENCIES), op("permute", _OUTER, attrs={"order": (0, 2, 1)}))
_TWICE = one_of(
    op("concat", _ANGLES, _ANGLES, where=along_last_axis),
    op("reshape", op("expand", op("reshape", _ANGLES))),
)


def _table(function: str) -> Pattern:
    """cos or sin of the angles, once or twice, times the scale, cut, cast and reshaped."""
    values = op(function, one_of(_TWICE, _ANGLES), key=True)
    scaled = one_of(product(values, number("scale")), values)
    return named(function, through(scaled, ("cast", "slice", *_SHAPES)))


_COS, _SIN = _table("cos"), _table("sin")

# --- the rotations ----------------------------------------------------------------------------------------------------

_X = maybe("cast", any_value("x", floats), where=widened)


def _column(x: Pattern) -> Pattern:
    return op("reshape", x)


def _pairs(first: Pattern, second: Pattern) -> Pattern:
    """Two tensors whose channels alternate."""
    return op("reshape", op("concat", _column(first), _column(second), where=along_last_axis))


def _picked(x: Pattern, start: int) -> Pattern:
    """Every second channel, by a stride or as a column of pairs."""
    return one_of(_part(x, start, 2), op("reshape", _part(op("reshape", x), start)))


_EVEN, _ODD = _picked(_X, 0), _picked(_X, 1)
_HALF_TURN = op("concat", op("neg", _part(_X, None)), _part(_X, 0), where=along_last_axis)
_PAIR_TURN = _pairs(op("neg", _ODD), _EVEN)


def _turned(turn: Pattern) -> Pattern:
    return maybe("cast", op("add", op("mul", _X, _COS), op("mul", turn, _SIN)))


def _halves(first: Pattern, second: Pattern) -> tuple[Pattern, Pattern]:
    return (
        maybe("cast", op("sub", op("mul", first, _COS), op("mul", second, _SIN))),
        maybe("cast", op("add", op("mul", second, _COS), op("mul", first, _SIN))),
    )


_ANY_HALVES = _halves(any_value("first"), any_value("second"))
_JOINED = maybe("cast", op("concat", *_ANY_HALVES, where=along_last_axis))
_ALTERNATING = maybe("cast", _pairs(*_halves(_EVEN, _ODD)))

# --- what they become -------------------------------------------------------------------------------------------------


def _half(match: Match, b: Builder) -> Value:
    return _rope(match, match["x"], "half", b)


def _joined(match: Match, b: Builder) -> Value:
    first, second = match["first"], match["second"]
    if first.type != second.type:
        raise Refused(f"the halves {first.type} and {second.type} are not alike")
    return _rope(match, b("concat", first, second, axis=len(first.shape) - 1), "half", b)


def _interleaved(match: Match, b: Builder) -> Value:
    return _rope(match, match["x"], "interleaved", b)


def _rope(match: Match, x: Value, style: str, b: Builder) -> Value:
    wanted = match.root.output.dtype
    if x.dtype != wanted and not holds(wanted, x.dtype):
        raise Refused(f"takes {x.dtype} and gives {wanted}")
    x = x if x.dtype == wanted else b("cast", x, dtype=wanted)
    swap = _sequence_axis(match, x) == 1
    order = (0, 2, 1, 3)
    heads_first = b("permute", x, order=order) if swap else x
    positions = _positions(match["positions"], heads_first.shape[0], heads_first.shape[2], b)
    inv_freq = match["inv_freq"]
    vector = inv_freq if len(inv_freq.shape) == 1 else b("reshape", inv_freq, shape=(inv_freq.tensor.elements,))
    scale = match.number("scale") if match.get("scale") is not None else 1.0
    result = b("rope", heads_first, positions, vector, style=style, scale=scale)
    return b("permute", result, order=order) if swap else result


def _sequence_axis(match: Match, x: Value) -> int:
    """The axis of x [B, H, S, D] or [B, S, H, D] along which the tables lie: the other one has size 1 in them."""
    if len(x.shape) != 4:
        raise Refused(f"x has {len(x.shape)} axes, not batch, heads, positions and channels")
    table = match["cos"].shape
    full = (*[1] * (4 - len(table)), *table)
    for axis in (2, 1):
        if full[axis] == x.shape[axis] and full[3 - axis] == 1 and full[0] in (1, x.shape[0]):
            return axis
    raise Refused(f"a table {match['cos'].type} does not lie along the positions of x {x.type}")


def _positions(value: Value, batch: Dim, length: Dim, b: Builder) -> Value:
    """Positions as [1 or B, S]."""
    for rows in (1, batch):
        if value.shape == (rows, length):
            return value
        if tuple(dim for dim in value.shape if dim != 1) == tuple(dim for dim in (rows, length) if dim != 1):
            return b("reshape", value, shape=(rows, length))
    raise Refused(f"positions {value.type} are not one row, or one for each of {batch}")


_ROPE = op("rope", _part(any_value("x"), 0), any_value("positions"), any_value("inv_freq"), capture="rope", key=True)


def _partial(match: Match, b: Builder) -> Value:
    """The rest of the channels passes through: what `rope` does with all that it has no frequencies for."""
    if match["rest"].shape[-1] + match["rope"].shape[-1] != match["x"].shape[-1]:
        raise Refused("the parts are not all channels")
    if match["rope"].shape[-1] != 2 * match["inv_freq"].shape[0]:
        raise Refused("not all channels of the first part are rotated")
    return b("rope", match["x"], match["positions"], match["inv_freq"], **match.node("rope").attrs)


_RULES = (
    Rule("half", _turned(_HALF_TURN), _half),
    Rule("halves", _JOINED, _joined),
    Rule("interleaved", _ALTERNATING, _interleaved),
    Rule("interleaved", _turned(_PAIR_TURN), _interleaved),
    Rule("partial", op("concat", _ROPE, named("rest", _part(any_value("x"), None)), where=along_last_axis), _partial),
)
