"""Attention of whole sequences as a cache with a tail shows them."""

from __future__ import annotations

import torch
from torch import Tensor

from irx.backends.torch.tailed import Rules, Side, mixed
from irx.ir.codes import TailedCode, tailed
from irx.runtime.kv_tailed import key_codes, value_codes


def coded_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None,
    sinks: Tensor | None = None, *, code: str, scale: float, window: int | None = None, softcap: float | None = None,
) -> Tensor:  # fmt: skip
    found = tailed(code)
    assert found is not None, "the op has seen to it"
    pos = torch.arange(q.shape[2], device=q.device)[None]
    full = (len(q), q.shape[1], q.shape[2], k.shape[2])
    mask = None if mask is None else mask.expand(full)
    added = None if bias is None else bias.expand(full)
    rules = Rules(scale, window, softcap, sinks, mask, None if added is None else lambda a, b: added[:, :, a:b])
    keys, values = Side(_keys(k, found), k, 0), Side(_values(v, found), v, 0)
    return mixed(q, keys, values, pos, found, rules)


def _keys(k: Tensor, code: TailedCode) -> Tensor:
    """The keys that any query sees as codes."""
    codes, step, low = key_codes(k[:, :, : code.coded_keys(max(0, k.shape[2] - 1))], code)
    step, low = (x.float().repeat_interleave(code.group, 2) for x in (step, low))
    return codes * step + low


def _values(v: Tensor, code: TailedCode) -> Tensor:
    """The values that any query sees as codes."""
    codes, step, low = value_codes(v[:, :, : code.coded_values(v.shape[2] - 1)], code)
    step, low = (x.float().repeat_interleave(code.group, 3) for x in (step, low))
    return codes * step + low
