"""Convolutions and pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from irx.frontends.torch_export.site import Site
from irx.frontends.torch_export.tables import Untranslatable, rule
from irx.ir.graph import Value


@rule("aten.conv1d.default")
def conv1d(
    site: Site, input: Value, weight: Value, bias: Value | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> Value:
    (s,), (p,), (d,) = stride, padding, dilation
    batched = input if len(input.shape) == 3 else site.unsqueeze(input, 0)
    result = site("conv1d", batched, weight, bias, stride=s, padding=p, dilation=d, groups=groups)
    return site.reshape(result, site.result.shape)


@rule("aten.conv2d.default")
def conv2d(
    site: Site, input: Value, weight: Value, bias: Value | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> Value:
    s, p, d = (tuple(pair) * (2 // len(pair)) for pair in (stride, padding, dilation))
    batched = input if len(input.shape) == 4 else site.unsqueeze(input, 0)
    result = site("conv2d", batched, weight, bias, stride=s, padding=p, dilation=d, groups=groups)
    return site.reshape(result, site.result.shape)


@rule("aten.conv1d.padding")
def conv1d_named(
    site: Site, input: Value, weight: Value, bias: Value | None, stride: Any, padding: str, dilation: Any, groups: int
) -> Value:
    return conv1d(site, input, weight, bias, stride, _amounts(weight, padding, dilation), dilation, groups)


@rule("aten.conv2d.padding")
def conv2d_named(
    site: Site, input: Value, weight: Value, bias: Value | None, stride: Any, padding: str, dilation: Any, groups: int
) -> Value:
    return conv2d(site, input, weight, bias, stride, _amounts(weight, padding, dilation), dilation, groups)


def _amounts(weight: Value, padding: str, dilation: Sequence[int]) -> list[int]:
    """Padding on both sides for "valid" and "same"; "same" with an even reach would need more on one side."""
    reach = [d * (int(k) - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]  # type: ignore[arg-type]
    if padding == "same" and any(amount % 2 for amount in reach):
        raise Untranslatable("padding that differs between the sides")
    return [amount // 2 if padding == "same" else 0 for amount in reach]


@rule("aten.adaptive_avg_pool1d.default", "aten.adaptive_avg_pool2d.default")
def adaptive_mean(site: Site, self: Value, output_size: Sequence[int]) -> Value:
    if any(size != 1 for size in output_size):
        raise Untranslatable("pooling to more than one element")
    rank = len(self.shape)
    return site("mean", self, axes=tuple(range(rank - len(output_size), rank)), keepdims=True)


@rule("aten.convolution.default")
def convolution(
    site: Site,
    input: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Value:
    if transposed or len(weight.shape) not in (3, 4):
        raise Untranslatable("a convolution that is transposed or has three axes")
    function = conv1d if len(weight.shape) == 3 else conv2d
    return function(site, input, weight, bias, stride, padding, dilation, groups)
