"""Attention to old tokens as codes and to the newest as they are: in whole sequences, and in states with a tail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from irx.backends.torch.attend import attend, grouped, logits_of
from irx.ir.codes import TailedCode
from irx.runtime.kv import KVState, Step, step_of
from irx.runtime.kv_tailed import TailedPlane

ROWS = 256  # queries whose logits are in memory at once
Bias = Callable[[int, int], Tensor]
"""What is added to the logits of queries [first, end), for all keys."""


@dataclass(frozen=True)
class Side:
    """Keys, or values: `coded` [B, G, n, D] of positions from 0, and `full` of positions from `first` to the end."""

    coded: Tensor
    full: Tensor
    first: int


@dataclass(frozen=True)
class Rules:
    """What attention does with logits, and what it sees."""

    scale: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None
    mask: Tensor | None = None
    bias: Bias | None = None


def append(kv: KVState, k: Tensor, v: Tensor, pos: Tensor) -> KVState:
    """The tokens of a call, behind those of their rows. Raises ValueError where they would leave holes."""
    step: Step | None = kv.step or step_of(kv.lengths, pos.tolist())
    if step is None:
        raise ValueError("tokens that leave holes behind them cannot be coded in groups")
    kv.reserve(step.end, 1 << 40)
    kv.lengths = step.lengths
    kv.settle()
    for plane, tokens in ((kv.keys, k), (kv.values, v)):
        assert isinstance(plane, TailedPlane)
        if step.uniform:
            plane.append(slice(None), step.start, tokens)
            continue
        for row, positions in enumerate(pos):
            (new,) = (positions >= 0).nonzero(as_tuple=True)
            if len(new):
                plane.append(slice(row, row + 1), int(positions[new[0]]), tokens[row : row + 1, :, new])
    return kv


def attend_state(q: Tensor, kv: KVState, pos: Tensor, rules: Rules) -> Tensor:
    """Attention of q [B, H, S, D] at positions pos [B, S] to a state with a tail."""
    assert isinstance(kv.keys, TailedPlane)
    code, wide = kv.keys.code, torch.promote_types(q.dtype, torch.float32)
    last = max(0, int(pos.max()))
    sides = []
    for plane, coded in ((kv.keys, code.coded_keys(last)), (kv.values, code.coded_values(last))):
        assert isinstance(plane, TailedPlane)
        first, full = plane.newest(kv.lengths)
        sides.append(Side(plane.read(0, coded).to(wide), full.to(wide), first))
    if pos.shape[1] == 1 and len(set(kv.lengths)) == 1 and last + 1 == kv.lengths[0] and bool((pos == last).all()):
        return _newest(q, sides[0], sides[1], rules)
    return mixed(q, sides[0], sides[1], pos, code, rules)


def _newest(q: Tensor, keys: Side, values: Side, rules: Rules) -> Tensor:
    """One query a row, which sees all there is, in the window."""
    k, v = (torch.cat([x.coded, x.full[:, :, x.coded.shape[2] - x.first :]], 2) for x in (keys, values))
    first = 0 if rules.window is None else max(0, k.shape[2] - rules.window)
    bias = None if rules.bias is None else rules.bias(0, 1)[..., first:]
    k, v = (x[:, :, first:].to(q.dtype) for x in (k, v))
    return attend(q, k, v, None, bias, rules.sinks, scale=rules.scale, softcap=rules.softcap)


def mixed(q: Tensor, keys: Side, values: Side, pos: Tensor, code: TailedCode, rules: Rules) -> Tensor:
    """Attention of q [B, H, S, D] at positions pos [B or 1, S], -1 for padding, which gives 0."""
    parts = [
        _rows(q, keys, values, pos, code, rules, first, min(first + ROWS, q.shape[2]))
        for first in range(0, q.shape[2], ROWS)
    ]
    return torch.cat(parts, 2)


def _rows(
    q: Tensor, keys: Side, values: Side, pos: Tensor, code: TailedCode, rules: Rules, first: int, end: int
) -> Tensor:
    at = pos[:, None, first:end, None]
    places = torch.arange(keys.first + keys.full.shape[2], device=q.device)
    rows = q[:, :, first:end]
    logits = logits_of(rows, keys.full, rules.scale, None)
    x = logits.new_zeros(*rows.shape[:3], len(places))
    x[..., : keys.coded.shape[2]] = logits_of(rows, keys.coded, rules.scale, None)
    as_code = places < at - at % code.tail
    x[..., keys.first :] = torch.where(as_code[..., keys.first :], x[..., keys.first :], logits)
    seen = (places <= at) & (at >= 0)
    seen = seen if rules.window is None else seen & (at - places < rules.window)
    seen = seen if rules.mask is None else seen & rules.mask[..., first:end, :]
    p = _weights(x, seen, None if rules.bias is None else rules.bias(first, end), rules)
    as_code = places < at + 1 - code.tail
    coded = values.coded.shape[2]
    out = grouped((p * as_code)[..., :coded], values.coded.to(p.dtype))
    return (out + grouped((p * ~as_code)[..., values.first :], values.full.to(p.dtype))).to(q.dtype)


def _weights(x: Tensor, seen: Tensor, bias: Tensor | None, rules: Rules) -> Tensor:
    """The softmax of logits, a sink counted."""
    x = x if rules.softcap is None else torch.tanh(x / rules.softcap) * rules.softcap
    x = (x if bias is None else x + bias).masked_fill(~seen, -torch.inf)
    top = x.amax(-1, keepdim=True)
    sink = None if rules.sinks is None else rules.sinks.to(x.dtype)[:, None, None]
    top = top if sink is None else torch.maximum(top, sink)
    top = top.masked_fill(top == -torch.inf, 0)
    p = torch.exp(x - top)
    total = p.sum(-1, keepdim=True) + (0 if sink is None else torch.exp(sink - top))
    return p / total.clamp_min(torch.finfo(p.dtype).tiny)
