"""Casts, copies, aliases, dropout in evaluation mode: what leaves elements as they are, or only changes their dtype."""

from __future__ import annotations

from typing import Any

from irx.frontends.torch_export.site import Site
from irx.frontends.torch_export.tables import Untranslatable, rule
from irx.ir.graph import Operand, Value


@rule(
    "aten.to.dtype",
    "aten.to.dtype_layout",
    "aten.to.device",
    "aten._to_copy.default",
)
def to(site: Site, self: Value, dtype: Any) -> Value:
    return site.cast(self, site.result.dtype)


@rule("aten.to.other", "aten.type_as.default")
def to_other(site: Site, self: Value, other: Value, **dtype: Any) -> Value:
    return site.cast(self, site.result.dtype)


@rule(
    "aten.alias.default",
    "aten.clone.default",
    "aten.contiguous.default",
    "aten.detach.default",
    "aten.detach_.default",
    "aten.lift.default",
    "aten.lift_fresh.default",
    "aten.lift_fresh_copy.default",
    "aten.resolve_conj.default",
    "aten.resolve_neg.default",
)
def alias(site: Site, self: Value) -> Value:
    return self


@rule("aten.dropout.default", "aten.feature_dropout.default", "aten.alpha_dropout.default")
def dropout(site: Site, input: Value, p: float, train: bool) -> Value:
    if train and p > 0:
        raise Untranslatable("dropout in training mode")
    return input


@rule("aten.native_dropout.default")
def native_dropout(site: Site, input: Value, p: float, train: bool | None) -> tuple[Value, Value]:
    return dropout(site, input, p, bool(train)), site.full(input.shape, True, "bool")


@rule("aten.copy.default")
def copy(site: Site, self: Value, src: Value) -> Value:
    return site.expand(site.cast(src, self.dtype), self.shape)


@rule("aten.fill.Scalar", "aten.fill.Tensor")
def fill(site: Site, self: Value, value: Operand) -> Value:
    filler = site.cast(site.value(value), self.dtype) if isinstance(value, Value) else value
    if isinstance(filler, Value):
        return site.expand(filler, self.shape)
    if not isinstance(filler, (bool, int, float)):
        raise Untranslatable("a size filled into a tensor")
    return site.full(self.shape, filler, self.dtype)


@rule("aten.zero.default")
def zero(site: Site, self: Value) -> Value:
    return site.full(self.shape, 0, self.dtype)
