"""raise-norm: RMS and layer normalisation, spelled out, become `rms_norm` and `layer_norm`.

Before:

    %a = irx.cast(%x) {dtype="f32"} : f32[B, S, 64]          // x is bf16
    %b = irx.pow(%a, 2) : f32[B, S, 64]
    %c = irx.mean(%b) {axes=[2], keepdims=true} : f32[B, S, 1]
    %d = irx.add(%c, 1e-06) : f32[B, S, 1]
    %e = irx.rsqrt(%d) : f32[B, S, 1]
    %f = irx.mul(%a, %e) : f32[B, S, 64]
    %g = irx.cast(%f) {dtype="bf16"} : bf16[B, S, 64]
    %h = irx.mul($w, %g) : bf16[B, S, 64]

After:

    %h = irx.rms_norm(%x, $w) {eps=1e-06, cast_before_weight=true} : bf16[B, S, 64]

Recognised are squares by `pow` and `mul`, the inverse by `rsqrt`, `1 / sqrt`, division by `sqrt` and `pow(-0.5)`, the
weight on either side, in front of or behind the cast, as an expression (`1 + w`), absent, or applied to the result of
an `rms_norm` without one, and the same for layer normalisation with its mean and bias.
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.analysis.precision import holds
from irx.ir.graph import Builder, Node, Value
from irx.ir.program import Program
from irx.pipeline.base import Context, Effect, Pass, Report, Stage
from irx.rewrite.conditions import floats, widened
from irx.rewrite.match import Match
from irx.rewrite.patterns import Pattern, any_value, constant, literal, maybe, number, one_of, op, product
from irx.rewrite.rewriter import Refused, Rewriter, Rule


@dataclass(frozen=True)
class RaiseNorm(Pass):
    """Recognise RMS and layer normalisation in all their spellings."""

    name = "raise-norm"
    stage = Stage.NORMALIZE
    effect = Effect.ROUNDING

    def run(self, program: Program, ctx: Context) -> Report:
        return Rewriter(self.name, _RULES, evaluate=ctx.evaluate, fuel=ctx.fuel).run(program)


def _over_last_axis(node: Node) -> str | None:
    x = node.inputs[0]
    rank = len(x.shape) if x is not None else 0
    if node.attr("axes") not in ((rank - 1,), (-1,)):
        return f"over axes {node.attr('axes')}, not the last"
    return None if node.attr("keepdims") else "does not keep the axis"


def _mean(inner: Pattern) -> Pattern:
    return op("mean", inner, where=_over_last_axis)


def _square(x: Pattern) -> Pattern:
    return one_of(op("pow", x, literal(2)), op("mul", x, x))


def _normalised(x: Pattern, *weight: Pattern) -> Pattern:
    """x (times weight) over the root of the mean of its squares."""
    shifted = op("add", _mean(_square(x)), number("eps"))
    root = one_of(op("sqrt", shifted, key=True), op("pow", shifted, literal(0.5)))
    inverse = one_of(
        op("rsqrt", shifted, key=True),
        op("reciprocal", root),
        op("div", literal(1), root),
        op("pow", shifted, literal(-0.5)),
    )
    if not weight:
        return one_of(product(x, inverse), op("div", x, root))
    return one_of(product(x, inverse, *weight), product(op("div", x, root), *weight))


_X = maybe("cast", any_value("x", floats), where=widened)


def _centred(x: Pattern) -> Pattern:
    return op("sub", x, _mean(x))


def _scaled(x: Pattern) -> Pattern:
    """The normalised value with its weight behind a cast, with its weight, or without one."""
    weight = constant("weight")
    rounded = op("mul", weight, op("cast", _normalised(x), capture="rounded"))
    return one_of(rounded, _normalised(x, weight), _normalised(x))


def _vector(match: Match, name: str, b: Builder) -> Value | None:
    """The captured weight or bias with one element per channel."""
    value, channels = match.get(name), match["x"].shape[-1:]
    if value is None or value.shape == channels:
        return value
    if value.shape[-1:] != channels or any(dim != 1 for dim in value.shape[:-1]):
        raise Refused(f"{name} {value.type} is not one number per channel")
    return b("reshape", value, shape=channels)


def _source(match: Match, b: Builder) -> Value:
    """x in the dtype of the result, which is the op's rule."""
    x, rounded, wanted = match["x"], match.get("rounded"), match.root.output.dtype
    if rounded is not None and rounded.dtype != wanted:
        raise Refused(f"is rounded to {rounded.dtype} between the norm and its weight, but gives {wanted}")
    if x.dtype == wanted:
        return x
    if not holds(wanted, x.dtype):
        raise Refused(f"takes {x.dtype} and gives {wanted}")
    return b("cast", x, dtype=wanted)


def _rms_norm(match: Match, b: Builder) -> Value:
    attrs = {"cast_before_weight": True} if match.get("rounded") is not None else {}
    return b("rms_norm", _source(match, b), _vector(match, "weight", b), eps=match.number("eps"), **attrs)


def _layer_norm(match: Match, b: Builder) -> Value:
    weight, bias = _vector(match, "weight", b), _vector(match, "bias", b)
    return b("layer_norm", _source(match, b), weight, bias, eps=match.number("eps"))


_CENTRED = _scaled(_centred(_X))
_LAYER_NORM = maybe("cast", one_of(op("add", _CENTRED, constant("bias")), _CENTRED))

_UNWEIGHTED = op("rms_norm", any_value("x"), capture="normal")


def _weighted(match: Match, b: Builder) -> Value:
    normal, weight = match["normal"], _vector(match, "weight", b)
    if normal.dtype != match.root.output.dtype:
        raise Refused(f"the weight makes {match.root.output.dtype} of {normal.dtype}")
    rounds = normal.dtype not in ("f32", "f64")  # in front of the multiplication
    return b("rms_norm", match["x"], weight, eps=match.node("normal").attr("eps"), cast_before_weight=rounds)


_RULES = (
    Rule("layer_norm", _LAYER_NORM, _layer_norm),
    Rule("rms_norm", maybe("cast", _scaled(_X)), _rms_norm),
    Rule("weight", op("mul", constant("weight"), _UNWEIGHTED), _weighted, exclusive=True),
)
