"""Scaled dot-product attention as torch has it, and the opaque operators that the transformers adapter puts in place of
attention, masks and experts (`torch.ops.irx.*`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from irx.frontends.torch_export.site import Site
from irx.frontends.torch_export.tables import Untranslatable, rule
from irx.ir.dims import Dim, product
from irx.ir.graph import Value


@rule("aten.scaled_dot_product_attention.default")
def sdpa(
    site: Site,
    query: Value,
    key: Value,
    value: Value,
    attn_mask: Value | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | Value | None,
    enable_gqa: bool,
) -> Value:
    if dropout_p > 0:
        raise Untranslatable("attention with dropout")
    mask, bias = _split_mask(attn_mask)
    q, k, v, mask, bias = (_four_axes(site, x) for x in (query, key, value, mask, bias))
    assert q is not None
    factor = _default_scale(q) if scale is None else scale
    if isinstance(factor, Value):
        q, factor = site("mul", q, factor), 1.0
    result = site("attention", q, k, v, mask, bias, scale=float(factor), causal=is_causal)
    return site.reshape(result, site.result.shape)


def _default_scale(q: Value) -> float:
    width = q.shape[-1]
    if not isinstance(width, int):
        raise Untranslatable("a head size that is not a number")
    return 1 / math.sqrt(width)


def _split_mask(mask: Value | None) -> tuple[Value | None, Value | None]:
    """Torch has one operand for what IRX keeps apart: a boolean mask, or a float bias."""
    if mask is None:
        return None, None
    return (mask, None) if mask.dtype == "bool" else (None, mask)


def _four_axes(site: Site, x: Value | None) -> Value | None:
    """`x` as [batch, heads, rows, columns]: missing axes are 1, further ones are part of the batch."""
    if x is None or len(x.shape) == 4:
        return x
    missing = max(0, 4 - len(x.shape))
    shape: Sequence[Dim] = (*[1] * missing, *x.shape)
    return site.reshape(x, (product(shape[:-3]), *shape[-3:]))


@rule("irx.mask.default")
def mask(site: Site, padding: Value | None, batch: Dim, rows: Dim, columns: Dim, causal: bool, window: int) -> Value:
    """The mask as a tensor, for models that do more with it than hand it to attention."""
    row, column = site.reshape(site.arange(rows), (rows, 1)), site.arange(columns)
    allowed = site("le", column, row) if causal else site("ge", row, 0)
    if window > 0:
        allowed = site("and", allowed, site("gt", column, site("sub", row, window)))
    if padding is not None:
        allowed = site("and", site.reshape(padding, (batch, 1, 1, columns)), allowed)
    return site.expand(allowed, site.result.shape)


@rule("irx.attention.default")
def attention(
    site: Site,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None,
    padding: Value | None,
    bias: Value | None,
    sinks: Value | None,
    scale: float,
    causal: bool,
    window: int,
    softcap: float,
) -> Value:
    visible, added = _split_mask(mask)
    if padding is not None:
        batch, columns = padding.shape
        visible = site.reshape(padding, (batch, 1, 1, columns))
    if added is not None:
        bias = added if bias is None else site("add", bias, added)
    result = site(
        "attention",
        query,
        key,
        value,
        visible,
        bias,
        sinks,
        scale=scale,
        causal=causal,
        window=window or None,
        softcap=softcap or None,
    )
    return site.permute(result, (0, 2, 1, 3))


@rule("irx.experts.default")
def experts(
    site: Site,
    x: Value,
    index: Value,
    weights: Value,
    gate_up: Value,
    down: Value,
    gate_up_bias: Value | None,
    down_bias: Value | None,
    activation: str,
    interleaved: bool,
    transposed: bool,
    alpha: float,
    limit: float,
) -> Value:
    attrs: dict[str, Any] = {"activation": activation, "interleaved": interleaved, "transposed": transposed}
    if activation == "swigluoai":
        attrs |= {"alpha": alpha, "limit": limit or None}
    return site("moe", x, index, weights, gate_up, down, gate_up_bias, down_bias, **attrs)
