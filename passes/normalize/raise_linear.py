"""raise-linear: matrix products with a weight become `linear`, and a bias added behind one becomes its bias.

Before:

    weight $w : f32[64, 192]                                  // [in, out]
    %a = irx.matmul(%x, $w) : f32[B, S, 192]
    %y = irx.add(%a, $bias) : f32[B, S, 192]

After:

    %w = irx.permute($w) {order=[1, 0]} : f32[192, 64]        // fold-constants makes it a derived weight
    %y = irx.linear(%x, %w, $bias) : f32[B, S, 192]

In bf16 the bias is now added before the rounding instead of after it.
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.ir.graph import Builder, Value
from irx.ir.program import Program
from irx.pipeline.base import Context, Effect, Pass, Report, Stage
from irx.rewrite.match import Match
from irx.rewrite.patterns import any_value, constant, one_of, op
from irx.rewrite.rewriter import Refused, Rewriter, Rule


@dataclass(frozen=True)
class RaiseLinear(Pass):
    """Recognise matrix products with weights, transposed or not, and their biases."""

    name = "raise-linear"
    stage = Stage.NORMALIZE
    effect = Effect.ROUNDING

    def run(self, program: Program, ctx: Context) -> Report:
        return Rewriter(self.name, _RULES, evaluate=ctx.evaluate, fuel=ctx.fuel).run(program)


def _matrix(value: Value) -> str | None:
    return None if len(value.shape) == 2 else f"a weight of {len(value.shape)} axes"


_TURNED = op("permute", constant("turned", _matrix), attrs={"order": (1, 0)})
_PRODUCT = op("matmul", any_value("x"), one_of(_TURNED, constant("weight", _matrix)))


def _linear(match: Match, b: Builder) -> Value:
    weight = match.get("turned") or b("permute", match["weight"], order=(1, 0))
    return b("linear", match["x"], weight)


_BIASED = op("add", op("linear", any_value("x"), any_value("weight"), capture="linear"), constant("bias"))


def _with_bias(match: Match, b: Builder) -> Value:
    linear, bias = match["linear"], match["bias"]
    channels = linear.shape[-1:]
    if bias.shape[-1:] != channels or any(dim != 1 for dim in bias.shape[:-1]):
        raise Refused(f"bias {bias.type} is not one number per channel")
    if linear.type != match.root.output.type:
        raise Refused(f"the bias makes {match.root.output.type} of {linear.type}")
    vector = bias if len(bias.shape) == 1 else b("reshape", bias, shape=channels)
    return b("linear", match["x"], match["weight"], vector)


_RULES = (Rule("linear", _PRODUCT, _linear), Rule("bias", _BIASED, _with_bias, exclusive=True))
