"""Cases of cache ops. The torch side does not know slots: it sees keys, values and their positions."""

from __future__ import annotations

from typing import Any

import torch

from irx.ops.cache import KVArrays
from tests.ops.cases import Case, Fixed, Floats, Ints, State
from tests.ops.cases_attention import logits

FULL = State([[0, 1, 2, 3, 4, 5, 6, -1, -1, -1, -1], [0, 1, 2, -1, -1, -1, -1, -1, -1, -1, -1]], 3, 8, 5)
MIXED = State([[9, 3, -1, 0, 4, 12, 1], [2, 8, 7, 5, -1, 3, 0]], 3, 8, 5)
Q = Floats((2, 6, 3, 8))
POS = Fixed([[7, 8, 9], [3, 4, -1]])


def _append(kv: Any, k: torch.Tensor, v: torch.Tensor, pos: torch.Tensor) -> KVArrays:
    state = KVArrays(kv.k.clone(), kv.v.clone(), kv.positions.clone())
    for b in range(pos.shape[0]):
        kept = pos[b] >= 0
        slots = pos[b][kept]
        state.k[b, :, slots], state.v[b, :, slots] = k[b][:, kept], v[b][:, kept]
        state.positions[b, :, slots] = slots
    return state


def _attend(
    q: Any,
    kv: Any,
    pos: Any,
    table: Any = None,
    sinks: Any = None,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    causal: bool = True,
) -> Any:
    repeat = q.shape[1] // kv.k.shape[1]
    places = kv.positions.repeat_interleave(repeat, 1)[:, :, None, :]
    distance = pos[:, None, :, None] - places
    x = logits(q, kv.k, None, scale, softcap)
    if table is not None:
        heads = torch.arange(q.shape[1])[None, :, None, None]
        x = x + table.float()[heads, distance.clamp(0, table.shape[1] - 1)]
    seen = (places >= 0) & (pos >= 0)[:, None, :, None]
    seen = seen & (distance >= 0) if causal else seen
    seen = seen & (distance < window) if window is not None else seen
    x = x.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        x = torch.cat([x, sinks.float()[None, :, None, None].expand(*x.shape[:3], 1)], -1)
    p = x.softmax(-1).nan_to_num()[..., : places.shape[-1]]
    return (p @ kv.v.float().repeat_interleave(repeat, 1)).to(q.dtype)


def _gather(kv: Any, index: Any) -> KVArrays:
    heads = torch.arange(index.shape[1])[None, :, None]
    rows = torch.arange(index.shape[0])[:, None, None]
    return KVArrays(kv.k[rows, heads, index], kv.v[rows, heads, index], kv.positions[rows, heads, index])


def _evict(kv: Any, scores: torch.Tensor, keep: int, sinks: int = 4, recent: int = 32) -> KVArrays:
    newest = kv.positions.amax(2, keepdim=True)
    ranked = scores.float()
    ranked = ranked.masked_fill((kv.positions < sinks) | (kv.positions > newest - recent), torch.inf)
    ranked = ranked.masked_fill(kv.positions < 0, -torch.inf)
    index = ranked.sort(dim=2, descending=True, stable=True).indices[..., :keep]
    return _gather(kv, index.sort(dim=2).values)


def _cases() -> list[Case]:
    table, sinks = Floats((6, 4)), Floats((6,))
    new = (Floats((2, 3, 3, 8)), Floats((2, 3, 3, 5)))
    everything: dict[str, Any] = {"scale": 0.3, "window": 5, "softcap": 1.5}
    scores = Floats((2, 3, 7), dtype="f32")
    return [
        Case("kv_append", (FULL, *new, POS), torch=_append, named=False),
        Case("kv_attention", (Q, FULL, POS), {"scale": 0.3}, _attend, named=False),
        Case("kv_attention", (Q, MIXED, POS), {"scale": 0.3}, _attend, named=False, label="mixed"),
        Case("kv_attention", (Q, FULL, POS, table, sinks), everything, _attend, named=False, label="everything"),
        Case("kv_attention", (Q, FULL, POS), {"scale": 0.3, "causal": False}, _attend, named=False, label="cross"),
        Case("kv_gather", (MIXED, Ints((2, 3, 4), 0, 7)), torch=_gather, named=False),
        Case("kv_evict", (MIXED, scores), {"keep": 5, "sinks": 1, "recent": 2}, _evict, named=False),
        Case("kv_evict", (MIXED, scores), {"keep": 7, "sinks": 1, "recent": 2}, _evict, named=False, label="room"),
    ]


CASES = _cases()
