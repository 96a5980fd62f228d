"""Cases of attention over whole sequences."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from tests.ops.cases import Bools, Case, Fixed, Floats

Q, K, V = Floats((2, 6, 7, 8)), Floats((2, 3, 7, 8)), Floats((2, 3, 7, 5))
LONG_K, LONG_V = Floats((2, 3, 11, 8)), Floats((2, 3, 11, 5))
SCALE = {"scale": 0.3}


def logits(q: torch.Tensor, k: torch.Tensor, bias: Any, scale: float, softcap: float | None) -> torch.Tensor:
    """float32 logits [B, H, S, T] with repeated KV heads."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    x = q.float() @ k.float().transpose(-1, -2) * scale
    x = x if softcap is None else softcap * torch.tanh(x / softcap)
    return x if bias is None else x + bias.float()


def visible(rows: int, keys: int, causal: bool, window: int | None) -> torch.Tensor:
    """bool [S, T]: what positions let a row see."""
    distance = torch.arange(rows)[:, None] - torch.arange(keys)
    seen = torch.ones(rows, keys, dtype=torch.bool)
    seen = seen & (distance >= 0) if causal else seen
    return seen if window is None else seen & (distance < window)


def attend(
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    bias: Any = None,
    sinks: Any = None,
    *,
    scale: float,
    causal: bool = False,
    window: int | None = None,
    softcap: float | None = None,
) -> Any:
    """(out, lse) by one explicit softmax over masked logits, sinks as one more column."""
    x = logits(q, k, bias, scale, softcap)
    seen = visible(x.shape[-2], x.shape[-1], causal, window)
    seen = seen if mask is None else seen & mask
    x = x.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        x = torch.cat([x, sinks.float()[None, :, None, None].expand(*x.shape[:3], 1)], -1)
    lse = x.logsumexp(-1)
    p = torch.where(lse[..., None] == -torch.inf, 0.0, (x - lse[..., None]).exp())[..., : k.shape[2]]
    out = p @ v.float().repeat_interleave(q.shape[1] // v.shape[1], 1)
    return out.to(q.dtype), lse


def _out(*operands: Any, **attrs: Any) -> Any:
    return attend(*operands, **attrs)[0]


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any = None, **attrs: Any) -> torch.Tensor:
    return F.scaled_dot_product_attention(
        q, k, v, mask, is_causal=attrs.get("causal", False), scale=attrs["scale"], enable_gqa=True
    )


def _merge(o1: torch.Tensor, lse1: torch.Tensor, o2: torch.Tensor, lse2: torch.Tensor) -> Any:
    lse = torch.logaddexp(lse1, lse2)
    parts = [(x.float() * (part - lse).exp()[..., None]) for x, part in ((o1, lse1), (o2, lse2))]
    return (parts[0] + parts[1]).to(o1.dtype), lse


def _stats(
    q: Any,
    k: Any,
    lse: Any,
    *,
    rows: int = 0,
    reduce: str = "sum",
    scale: float,
    causal: bool = False,
    group: Any = "sum",
) -> Any:
    x = logits(q, k, None, scale, None)
    seen = visible(x.shape[-2], x.shape[-1], causal, None)
    p = torch.where(seen, (x - lse[..., None]).exp(), 0.0)[..., -rows:, :]
    c = p.sum(2) if reduce == "sum" else p.amax(2)
    grouped = c.reshape(c.shape[0], k.shape[1], -1, c.shape[2])
    c = getattr(torch, {"max": "amax"}.get(group, group))(grouped, 2)
    return c, seen[-rows:].sum(0)


def _attention() -> list[Case]:
    sinks, mask, bias = Floats((6,)), Bools((2, 1, 7, 11)), Floats((1, 6, 7, 11))
    everything = {"scale": 0.3, "causal": True, "window": 3, "softcap": 1.5}
    blind = Fixed([[True, False, True], [False, False, False]])
    one = Floats((1, 1, 1, 1))
    return [
        Case("attention", (Q, K, V), SCALE, _sdpa),
        Case("attention", (Q, K, V), {"scale": 0.3, "causal": True}, _sdpa, label="causal"),
        Case("attention", (Q, LONG_K, LONG_V), SCALE, _sdpa, label="cross"),
        Case("attention", (Q, LONG_K, LONG_V, mask), SCALE, _out, label="mask"),
        Case("attention", (Q, LONG_K, LONG_V, None, bias), SCALE, _out, label="bias"),
        Case("attention", (Q, K, V), {"scale": 0.3, "causal": True, "window": 3}, _out, label="window"),
        Case("attention", (Q, K, V), {"scale": 0.3, "softcap": 0.5}, _out, label="softcap"),
        Case("attention", (Q, K, V, None, None, sinks), {"scale": 0.3, "causal": True}, _out, label="sinks"),
        Case("attention", (Q, LONG_K, LONG_V, mask, bias, sinks), everything, _out, label="everything"),
        Case(
            "attention",
            (Floats((2, 3, 2, 8)), Floats((2, 3, 3, 8)), Floats((2, 3, 3, 5)), blind),
            SCALE,
            _out,
            named=False,
            label="blind",
        ),
        Case("attention", (one, one, one), {"scale": 1.0, "causal": True}, _sdpa, label="ones"),
    ]


def _parts() -> list[Case]:
    out, lse = Floats((2, 6, 7, 5)), Floats((2, 6, 7), dtype="f32")
    sinks = Floats((6,))
    level = Floats((2, 6, 7), above=2.0, dtype="f32")
    return [
        Case("attention_lse", (Q, K, V), {"scale": 0.3, "causal": True}, attend),
        Case("attention_lse", (Q, LONG_K, LONG_V, None, None, sinks), SCALE, attend, label="sinks"),
        Case("merge_attention", (out, lse, out, lse), torch=_merge),
        Case("attention_stats", (Q, LONG_K, level), SCALE, _stats),
        Case("attention_stats", (Q, K, level), {"scale": 0.3, "causal": True, "rows": 3}, _stats, label="causal"),
        Case("attention_stats", (Q, K, level), {"scale": 0.3, "reduce": "max", "group": "max"}, _stats, label="max"),
        Case("attention_stats", (Q, K, level), {"scale": 0.3, "rows": 1, "group": "mean"}, _stats, label="mean"),
    ]


def _coded() -> list[Case]:
    """Of 7 queries the last three see codes."""
    operands, code = (Q, K, Floats((2, 3, 7, 6))), {"code": "kivi2-2-4", "scale": 0.3}
    mask, bias, sinks = Bools((2, 1, 7, 7)), Floats((1, 6, 7, 7)), Floats((6,))
    return [
        Case("coded_attention", operands, code),
        Case("coded_attention", operands, {"code": "kivi4-3-3", "scale": 0.3, "window": 5}, label="window"),
        Case("coded_attention", (*operands, mask, bias, sinks), code | {"softcap": 0.5}, label="everything"),
    ]


CASES = [*_attention(), *_parts(), *_coded()]
