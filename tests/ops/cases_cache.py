"""Cases of cache ops. The torch side does not know slots: it sees keys, values and their positions."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch

from irx.ops.cache import KVArrays
from tests.ops.cases import Case, Fixed, Floats, Ints, State
from tests.ops.cases_attention import logits

FULL = State([[0, 1, 2, 3, 4, 5, 6, -1, -1, -1, -1], [0, 1, 2, -1, -1, -1, -1, -1, -1, -1, -1]], 3, 8, 5)
MIXED = State([[9, 3, -1, 0, 4, 12, 1], [2, 8, 7, 5, -1, 3, 0]], 3, 8, 5)
Q = Floats((2, 6, 3, 8))
LAST, ENDS = Floats((2, 6, 3, 8)), Fixed([[4, 5, 6], [-1, 1, 2]])
SEEN: dict[str, Any] = {"by": "attention", "share": 0.5, "keep": 2, "first": 1, "recent": 1, "rows": 2, "scale": 0.3}
ALL: dict[str, Any] = {"rows": 0, "pool": 3, "softcap": 1.5, "half": 0.5}
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


def _keep(kv: Any, q: Any = None, pos: Any = None, sinks: Any = None, **how: Any) -> KVArrays:
    """The tokens that stay of each row and head, found one by one; slots without a token have position -1."""
    batch, heads, _ = kv.positions.shape
    found = []
    for b in range(batch):
        length = int(kv.positions[b].max()) + 1
        held = int((kv.positions[b, 0] >= 0).sum())
        count = min(held, max(how.get("keep", 0), math.ceil(how.get("share", 0.0) * length - 1e-9)))
        newest = max(how.get("recent", 0), int(how.get("half", 0.0) * count))
        found.append([_kept(kv, b, g, count, newest, length, q, pos, sinks, how) for g in range(heads)])
    if [len(row[0]) for row in found] == (kv.positions[:, 0] >= 0).sum(1).tolist():
        return kv
    most = max(len(head) for row in found for head in row)
    slots = torch.tensor([[[*head, *[0] * (most - len(head))] for head in row] for row in found])
    made = _gather(kv, slots)
    for b, g in itertools.product(range(batch), range(heads)):
        made.positions[b, g, len(found[b][g]) :] = -1
    return made


def _kept(
    kv: Any, b: int, g: int, count: int, newest: int, length: int, q: Any, pos: Any, sinks: Any, how: Any
) -> list[int]:
    """The slots of one head that stay, by position."""
    places = kv.positions[b, g]
    order = [int(slot) for slot in places.argsort() if places[slot] >= 0]
    score = [_score(kv, b, g, slot, length, q, pos, sinks, how) for slot in order]
    late = [int(places[slot]) >= length - newest for slot in order]
    shown = [0.0 if is_late else one for one, is_late in zip(score, late, strict=True)]
    half = how.get("pool", 1) // 2
    pooled = [sum(shown[max(0, i - half) : i + half + 1]) / (2 * half + 1) for i in range(len(shown))]
    sure = [is_late or int(places[slot]) < how.get("first", 0) for slot, is_late in zip(order, late, strict=True)]
    ranked = sorted(range(len(order)), key=lambda i: (not sure[i], -pooled[i], i))
    return [order[i] for i in sorted(ranked[:count])]


def _score(kv: Any, b: int, g: int, slot: int, length: int, q: Any, pos: Any, sinks: Any, how: Any) -> float:
    places = kv.positions[b, g]
    if how["by"] != "attention":
        return float(places[slot]) if how["by"] == "age" else -float(kv.k[b, g, slot].float().norm())
    total, group = 0.0, q.shape[1] // kv.k.shape[1]
    for h, i in itertools.product(range(g * group, (g + 1) * group), range(q.shape[2])):
        at = int(pos[b, i])
        if at < 0 or at < length - (how.get("rows", 0) or q.shape[2]) or places[slot] > at:
            continue
        x = logits(q[b, h, i][None, None, None], kv.k[b, g][None, None], None, how["scale"], how.get("softcap"))
        x = x.flatten().masked_fill((places < 0) | (places > at), -torch.inf)
        x = x if sinks is None else torch.cat([x, sinks[h].float()[None]])
        total += float(x.softmax(0)[slot])
    return total


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
        Case("kv_keep", (MIXED,), {"by": "norm", "keep": 4, "first": 1, "recent": 2}, _keep, named=False),
        Case("kv_keep", (FULL,), {"by": "age", "share": 0.5, "keep": 2, "first": 1}, _keep, named=False, label="age"),
        Case("kv_keep", (FULL, LAST, ENDS), SEEN, _keep, named=False, label="attention"),
        Case("kv_keep", (FULL, LAST, ENDS, sinks), {**SEEN, **ALL}, _keep, named=False, label="sinks"),
        Case("kv_keep", (FULL, LAST, ENDS), {**SEEN, "keep": 20}, _keep, named=False, label="kept"),
    ]


CASES = _cases()
