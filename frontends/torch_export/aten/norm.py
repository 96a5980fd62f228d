"""Normalisations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from irx.frontends.torch_export.site import Site
from irx.frontends.torch_export.tables import Untranslatable, rule
from irx.ir.dims import product
from irx.ir.graph import Value

_EPSILON = {"f64": 2.0**-52, "f32": 2.0**-23, "bf16": 2.0**-7, "f16": 2.0**-10}


@rule("aten.layer_norm.default")
def layer_norm(
    site: Site,
    input: Value,
    normalized_shape: Sequence[int],
    weight: Value | None,
    bias: Value | None,
    eps: float,
    cudnn_enable: bool,
) -> Value:
    x, scale, shift = (_flat(site, v, len(normalized_shape)) for v in (input, weight, bias))
    return site.reshape(site("layer_norm", x, scale, shift, eps=site.number(eps)), site.result.shape)


@rule("aten.rms_norm.default")
def rms_norm(site: Site, input: Value, normalized_shape: Any, weight: Value | None, eps: float | None) -> Value:
    x, scale = (_flat(site, v, len(normalized_shape)) for v in (input, weight))
    epsilon = _EPSILON[input.dtype] if eps is None else site.number(eps)
    return site.reshape(site("rms_norm", x, scale, eps=epsilon), site.result.shape)


def _flat(site: Site, x: Value | None, axes: int) -> Value | None:
    """`x` with its last axes joined into one."""
    if x is None or axes == 1:
        return x
    kept = len(x.shape) - axes
    return site.reshape(x, (*x.shape[:kept], product(x.shape[kept:])))


@rule("aten.batch_norm.default")
def batch_norm(
    site: Site,
    input: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value | None,
    running_var: Value | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Value:
    if training or running_mean is None or running_var is None:
        raise Untranslatable("batch statistics")
    shape = (running_mean.shape[0], *[1] * (len(input.shape) - 2))
    mean, spread = (site.reshape(v, shape) for v in (running_mean, running_var))
    x = site("mul", site("sub", input, mean), site("rsqrt", site("add", spread, eps)))
    x = x if weight is None else site("mul", x, site.reshape(weight, shape))
    return x if bias is None else site("add", x, site.reshape(bias, shape))
