"""raise-activation: spelled out activations become `silu` and `gelu`, gated ones `swiglu` and `geglu`.

Before:

    %a = irx.mul(%x, 0.5) : f32[B, S, 128]
    %b = irx.pow(%x, 3.0) : f32[B, S, 128]
    %c = irx.mul(%b, 0.044715) : f32[B, S, 128]
    %d = irx.add(%x, %c) : f32[B, S, 128]
    %e = irx.mul(%d, 0.7978845608028654) : f32[B, S, 128]
    %f = irx.tanh(%e) : f32[B, S, 128]
    %g = irx.add(%f, 1.0) : f32[B, S, 128]
    %h = irx.mul(%a, %g) : f32[B, S, 128]
    %y = irx.mul(%h, %up) : f32[B, S, 128]

After:

    %y = irx.geglu(%x, %up) {approximate="tanh"} : f32[B, S, 128]

Products are recognised in any order and association, and through casts to a wider dtype and back. An activation becomes
gated only where nothing else reads it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from irx.ir.graph import Builder, Value
from irx.ir.program import Program
from irx.pipeline.base import Context, Effect, Pass, Report, Stage
from irx.rewrite.conditions import floats, widened
from irx.rewrite.match import Match
from irx.rewrite.patterns import Pattern, any_value, literal, maybe, one_of, op, product
from irx.rewrite.rewriter import Refused, Rewriter, Rule


@dataclass(frozen=True)
class RaiseActivation(Pass):
    """Recognise SiLU, GELU (erf and tanh) and their gated forms in all their spellings."""

    name = "raise-activation"
    stage = Stage.NORMALIZE
    effect = Effect.ROUNDING

    def run(self, program: Program, ctx: Context) -> Report:
        return Rewriter(self.name, _RULES, evaluate=ctx.evaluate, fuel=ctx.fuel).run(program)


_X = maybe("cast", any_value("x", floats), where=widened)
_HALF = literal(0.5)


def _one_plus(inner: Pattern) -> Pattern:
    return op("add", inner, literal(1))


def _half_times(x: Pattern, factor: Pattern) -> Pattern:
    """x * factor / 2, the half in any place."""
    return one_of(product(x, factor, _HALF), product(op("div", x, literal(2)), factor))


def _cubic(x: Pattern) -> Pattern:
    """sqrt(2 / pi) * (x + 0.044715 * x^3), or with x outside of the bracket."""
    slope, root = literal(0.044715, 1e-4), literal(math.sqrt(2 / math.pi), 1e-4)
    cube = one_of(product(op("pow", x, literal(3)), slope), product(x, x, x, slope), product(op("mul", x, x), x, slope))
    square = one_of(product(op("pow", x, literal(2)), slope), product(x, x, slope))
    return one_of(product(root, op("add", x, cube)), product(root, x, _one_plus(square)))


def _scaled_by_root_two(x: Pattern) -> Pattern:
    return one_of(op("div", x, literal(math.sqrt(2), 1e-4)), op("mul", x, literal(math.sqrt(0.5), 1e-4)))


_LOGISTIC = op("add", op("exp", op("neg", _X), key=True), literal(1))
_SILU = one_of(op("mul", _X, op("sigmoid", _X)), op("div", _X, _LOGISTIC))
_GELU_TANH = _half_times(_X, _one_plus(op("tanh", _cubic(_X), key=True)))
_GELU_ERF = _half_times(_X, _one_plus(op("erf", _scaled_by_root_two(_X), key=True)))


def _source(match: Match, b: Builder) -> Value:
    """x in the dtype of the result, which is the op's rule."""
    x, wanted = match["x"], match.root.output.type
    if x.shape != match.root.output.shape:
        raise Refused("x is broadcast")
    return x if x.type == wanted else b("cast", x, dtype=match.root.output.dtype)


def _silu(match: Match, b: Builder) -> Value:
    return b("silu", _source(match, b))


def _gelu_tanh(match: Match, b: Builder) -> Value:
    return b("gelu", _source(match, b), approximate="tanh")


def _gelu_erf(match: Match, b: Builder) -> Value:
    return b("gelu", _source(match, b))


def _gated(name: str) -> Pattern:
    return op("mul", op(name, any_value("gate"), capture="active", key=True), any_value("up"))


def _alike(match: Match) -> tuple[Value, Value]:
    gate, up = match["gate"], match["up"]
    if gate.type != up.type:
        raise Refused(f"gate {gate.type} and up {up.type} are not alike")
    return gate, up


def _swiglu(match: Match, b: Builder) -> Value:
    return b("swiglu", *_alike(match))


def _geglu(match: Match, b: Builder) -> Value:
    return b("geglu", *_alike(match), approximate=match.node("active").attr("approximate"))


_RULES = (
    Rule("silu", maybe("cast", _SILU), _silu),
    Rule("gelu", maybe("cast", _GELU_TANH), _gelu_tanh),
    Rule("gelu", maybe("cast", _GELU_ERF), _gelu_erf),
    Rule("swiglu", _gated("silu"), _swiglu, exclusive=True),
    Rule("geglu", _gated("gelu"), _geglu, exclusive=True),
)
