"""Elementwise arithmetic, comparisons, logic and rounding."""

from __future__ import annotations

from typing import Any

from irx.frontends.torch_export.site import Site
from irx.frontends.torch_export.tables import Untranslatable, rule
from irx.ir.graph import Operand, Value
from irx.ir.types import is_float

_BINARY = {
    "mul": ("mul.Tensor", "mul.Scalar", "multiply.Tensor"),
    "div": ("div.Tensor", "div.Scalar", "true_divide.Tensor", "divide.Tensor"),
    "floor_div": ("floor_divide.default", "floor_divide.Scalar"),
    "remainder": ("remainder.Tensor", "remainder.Scalar"),
    "maximum": ("maximum.default", "max.other"),
    "minimum": ("minimum.default", "min.other"),
    "eq": ("eq.Tensor", "eq.Scalar"),
    "ne": ("ne.Tensor", "ne.Scalar"),
    "lt": ("lt.Tensor", "lt.Scalar"),
    "le": ("le.Tensor", "le.Scalar"),
    "gt": ("gt.Tensor", "gt.Scalar"),
    "ge": ("ge.Tensor", "ge.Scalar"),
}
_BITWISE = {
    "and": ("__and__.Tensor", "__and__.Scalar", "bitwise_and.Tensor", "bitwise_and.Scalar"),
    "or": ("__or__.Tensor", "__or__.Scalar", "bitwise_or.Tensor", "bitwise_or.Scalar"),
    "xor": ("__xor__.Tensor", "__xor__.Scalar", "bitwise_xor.Tensor", "bitwise_xor.Scalar"),
}
_UNARY = (
    "neg abs exp log sqrt rsqrt reciprocal sin cos tanh sigmoid erf floor ceil sign relu".split()
)  # the same name on both sides


def _define_binary(op: str, overloads: tuple[str, ...]) -> None:
    @rule(*(f"aten.{overload}" for overload in overloads))
    def binary(site: Site, self: Operand, other: Operand) -> Value:
        return site(op, self, other)


def _define_unary(op: str) -> None:
    @rule(f"aten.{op}.default")
    def unary(site: Site, self: Value) -> Value:
        return site(op, self)


def _define_bitwise(op: str, overloads: tuple[str, ...]) -> None:
    @rule(*(f"aten.{overload}" for overload in overloads))
    def bitwise(site: Site, self: Value, other: Operand) -> Value:
        operands = [site.value(self), site.value(other)]
        if any(operand.dtype not in ("bool", "bool_") for operand in operands):
            raise Untranslatable("bits of integers")
        return site(op, *operands)


for _op, _overloads in _BINARY.items():
    _define_binary(_op, _overloads)
for _op, _overloads in _BITWISE.items():
    _define_bitwise(_op, _overloads)
for _op in _UNARY:
    _define_unary(_op)


def _scaled(site: Site, x: Operand, alpha: Any) -> Operand:
    return x if alpha == 1 else site("mul", x, alpha)


@rule("aten.add.Tensor", "aten.add.Scalar")
def add(site: Site, self: Operand, other: Operand, alpha: Any) -> Value:
    return site("add", self, _scaled(site, other, alpha))


@rule("aten.sub.Tensor", "aten.sub.Scalar")
def sub(site: Site, self: Operand, other: Operand, alpha: Any) -> Value:
    return site("sub", self, _scaled(site, other, alpha))


@rule("aten.rsub.Tensor", "aten.rsub.Scalar")
def rsub(site: Site, self: Operand, other: Operand, alpha: Any) -> Value:
    return site("sub", other, _scaled(site, self, alpha))


@rule("aten.div.Tensor_mode", "aten.div.Scalar_mode")
def div_mode(site: Site, self: Operand, other: Operand, rounding_mode: str | None) -> Value:
    if rounding_mode == "trunc":
        raise Untranslatable("division that truncates")
    return site("div" if rounding_mode is None else "floor_div", self, other)


@rule("aten.pow.Tensor_Scalar", "aten.pow.Tensor_Tensor", "aten.pow.Scalar")
def power(site: Site, self: Operand, exponent: Operand) -> Value:
    return site("pow", self, exponent)


@rule("aten.square.default")
def square(site: Site, self: Value) -> Value:
    return site("pow", self, 2)


@rule("aten.exp2.default")
def exp2(site: Site, self: Value) -> Value:
    return site("pow", 2.0, site.floating(self))


@rule("aten.softplus.default")
def softplus(site: Site, self: Value, beta: Any, threshold: Any) -> Value:
    # Above the threshold torch returns x itself, which softplus equals there within float32's rounding at 20.
    if site.number(threshold) < 20:
        raise Untranslatable("softplus that is cut off early")
    if beta == 1:
        return site("softplus", self)
    return site("div", site("softplus", site("mul", self, beta)), beta)


@rule("aten.logical_and.default")
def logical_and(site: Site, self: Value, other: Value) -> Value:
    return site("and", truth(site, self), truth(site, other))


@rule("aten.logical_or.default")
def logical_or(site: Site, self: Value, other: Value) -> Value:
    return site("or", truth(site, self), truth(site, other))


@rule("aten.logical_xor.default")
def logical_xor(site: Site, self: Value, other: Value) -> Value:
    return site("xor", truth(site, self), truth(site, other))


@rule("aten.logical_not.default")
def logical_not(site: Site, self: Value) -> Value:
    return site("not", truth(site, self))


@rule("aten.bitwise_not.default")
def bitwise_not(site: Site, self: Value) -> Value:
    if self.dtype != "bool":
        raise Untranslatable("bits of integers")
    return site("not", self)


def truth(site: Site, x: Value) -> Value:
    """Where `x` is not 0."""
    return x if x.dtype == "bool" else site("ne", x, 0)


@rule("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar")
def where(site: Site, condition: Value, self: Operand, other: Operand) -> Value:
    return site("where", truth(site, condition), self, other)


@rule("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(site: Site, self: Value, mask: Value, value: Operand) -> Value:
    filler = site.value(value)
    if is_float(filler.dtype) and not is_float(self.dtype):
        raise Untranslatable("a float filled into an integer tensor")
    return site("where", mask, filler, self)


@rule("aten.clamp.default")
def clamp(site: Site, self: Value, min: Any, max: Any) -> Value:
    if all(isinstance(bound, (int, float, type(None))) for bound in (min, max)) and is_float(self.dtype):
        return site("clamp", self, low=_number(min), high=_number(max))
    return clamp_tensor(site, self, min, max)


@rule("aten.clamp.Tensor")
def clamp_tensor(site: Site, self: Value, min: Operand, max: Operand) -> Value:
    lifted = self if min is None else site("maximum", self, min)
    return lifted if max is None else site("minimum", lifted, max)


@rule("aten.clamp_min.default", "aten.clamp_min.Tensor")
def clamp_min(site: Site, self: Value, min: Any) -> Value:
    return clamp(site, self, min, None)


@rule("aten.clamp_max.default", "aten.clamp_max.Tensor")
def clamp_max(site: Site, self: Value, max: Any) -> Value:
    return clamp(site, self, None, max)


def _number(bound: Any) -> float | None:
    return None if bound is None else float(bound)


@rule("aten.lerp.Scalar", "aten.lerp.Tensor")
def lerp(site: Site, self: Value, end: Value, weight: Operand) -> Value:
    return site("add", self, site("mul", site("sub", end, self), weight))


@rule("aten.addcmul.default")
def addcmul(site: Site, self: Value, tensor1: Value, tensor2: Value, value: Any) -> Value:
    product = site("mul", tensor1, tensor2)
    return site("add", self, _scaled(site, product, value))


@rule("aten.relu6.default")
def relu6(site: Site, self: Value) -> Value:
    return site("clamp", self, low=0.0, high=6.0)


@rule("aten.hardtanh.default")
def hardtanh(site: Site, self: Value, min_val: Any, max_val: Any) -> Value:
    return site("clamp", self, low=site.number(min_val), high=site.number(max_val))


@rule("aten.leaky_relu.default")
def leaky_relu(site: Site, self: Value, negative_slope: Any) -> Value:
    return site("where", site("gt", self, 0), self, site("mul", self, negative_slope))
