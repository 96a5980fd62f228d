"""Activation functions."""

from __future__ import annotations

from irx.frontends.torch_export.site import Site
from irx.frontends.torch_export.tables import rule
from irx.ir.graph import Value


@rule("aten.silu.default")
def silu(site: Site, self: Value) -> Value:
    return site("silu", self)


@rule("aten.gelu.default")
def gelu(site: Site, self: Value, approximate: str) -> Value:
    return site("gelu", self, approximate=approximate)


@rule("aten.mish.default")
def mish(site: Site, self: Value) -> Value:
    return site("mul", self, site("tanh", site("softplus", self)))


@rule("aten.glu.default")
def glu(site: Site, self: Value, dim: int) -> Value:
    axis = site.axis(self, dim)
    half = self.shape[axis] // 2
    gate = site("sigmoid", site.slice(self, axis, half))
    return site("mul", site.slice(self, axis, 0, half), gate)


@rule("aten.hardsigmoid.default")
def hardsigmoid(site: Site, self: Value) -> Value:
    return site("div", site("clamp", site("add", self, 3.0), low=0.0, high=6.0), 6.0)


@rule("aten.hardswish.default")
def hardswish(site: Site, self: Value) -> Value:
    return site("mul", self, hardsigmoid(site, self))


@rule("aten.log_sigmoid.default")
def log_sigmoid(site: Site, self: Value) -> Value:
    return site("neg", site("softplus", site("neg", self)))
