"""Kernels that choose which tokens of a KV state stay."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from irx.backends.torch.attend import logits_of
from irx.ops.eviction import kept_count
from irx.runtime.kv import KVState
from irx.runtime.kv_kept import Kept

_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 26}  # in memory at once: what stays in caches, and what fills a device


def kv_keep(
    kv: KVState, q: Tensor | None = None, pos: Tensor | None = None, sinks: Tensor | None = None, *, by: str,
    share: float = 0.0, keep: int = 0, first: int = 0, recent: int = 0, half: float = 0.0, rows: int = 0,
    pool: int = 1, scale: float = 1.0, softcap: float | None = None,
) -> KVState:  # fmt: skip
    places = _ordered(kv)
    lengths = kv.lengths if kv.positions is None else tuple((places.amax((1, 2)) + 1).tolist())
    held = (places >= 0).sum(2)[:, 0].tolist()
    counts = [min(n, kept_count(length, share, keep)) for n, length in zip(held, lengths, strict=True)]
    if counts == held:
        return kv
    ends = torch.tensor(lengths, device=places.device)[:, None, None]
    newest = torch.tensor([max(recent, int(half * count)) for count in counts], device=places.device)[:, None, None]
    late = places >= ends - newest
    keys = kv.keys.read(0, places.shape[2])
    if by == "attention":
        assert q is not None and pos is not None, "attention needs queries"
        scores = _received(keys, places, q, pos, sinks, rows, lengths, scale, softcap)
    else:
        scores = -keys.float().norm(dim=-1) if by == "norm" else places.float()
    scores = scores.masked_fill(late | (places < 0), 0)
    scores = avg_pool1d(scores, pool, 1, pool // 2) if pool > 1 else scores
    protected = late | (places < first)
    ranked = scores.masked_fill(protected, torch.inf).masked_fill(places < 0, -torch.inf)
    return _chosen(kv, places, ranked, counts, lengths)


def _ordered(kv: KVState) -> Tensor:
    """Positions of the slots in use, i64[B, G, T], ascending: what lies in another order is put in this one first."""
    places = kv.slot_positions()
    if kv.positions is not None:
        order = places.masked_fill(places < 0, torch.iinfo(torch.int64).max).argsort(dim=2, stable=True)
        ordered = kv.take(order)
        kv.keys, kv.values, kv.positions = ordered.keys, ordered.values, ordered.positions
        places = kv.slot_positions()
    return places[..., : int((places >= 0).sum(2).max())]


def _chosen(kv: KVState, places: Tensor, ranked: Tensor, counts: list[int], lengths: tuple[int, ...]) -> KVState:
    """The best `counts` tokens of each row and head, in the order of their slots."""
    most, slots = max(counts), places.shape[2]
    best = ranked.sort(dim=2, descending=True, stable=True).indices[..., :most]
    beyond = torch.arange(most, device=best.device) >= torch.tensor(counts, device=best.device)[:, None, None]
    index = best.masked_fill(beyond, slots).sort(2).values.clamp_max(slots - 1)
    made = KVState(*kv.planes_at(index), lengths)
    made.kept = Kept(places.gather(2, index).int(), tuple(counts), lengths, lengths)
    made.step = kv.step
    return made


def _received(
    keys: Tensor, places: Tensor, q: Tensor, pos: Tensor, sinks: Tensor | None, rows: int, lengths: tuple[int, ...],
    scale: float, softcap: float | None,
) -> Tensor:  # fmt: skip
    """The attention that each slot gets from the last `rows` tokens of its row (0: all): f32[B, G, T]."""
    batch, groups, slots = places.shape
    count = min(rows or pos.shape[1], pos.shape[1])
    columns = pos.argsort(dim=1, stable=True)[:, -count:]  # the last real tokens; padding is before them
    oldest = torch.tensor(lengths, device=pos.device)[:, None] - (rows or max(lengths))
    found = torch.zeros(batch, groups, slots, device=keys.device)
    together = max(1, _LOGITS[keys.device.type] // (batch * q.shape[1] * slots))
    for some in torch.split(columns, together, dim=1):
        at = pos.gather(1, some)
        at = at.masked_fill(at < oldest, -1)
        there = int((places <= at.max()).sum(2).max())  # later slots are not seen by any of these queries
        queries = q.gather(2, some[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3]))
        p = _shares(queries, keys[:, :, :there], places[..., :there], at, sinks, scale, softcap)
        found[..., :there] += torch.unflatten(p, 1, (groups, -1)).sum((2, 3))
    return found


def _shares(
    q: Tensor, keys: Tensor, places: Tensor, at: Tensor, sinks: Tensor | None, scale: float, softcap: float | None
) -> Tensor:
    """softmax(q k^T) of queries at `at` [B, R], nothing for those at -1: f32[B, H, R, T]."""
    seen = (places[:, :, None] <= at[:, None, :, None]) & (places >= 0)[:, :, None]
    logits = logits_of(q, keys, scale, softcap)
    torch.unflatten(logits, 1, (keys.shape[1], -1)).masked_fill_(~seen[:, :, None], -torch.inf)
    if sinks is not None:
        sink = sinks.to(logits.dtype)[:, None, None].expand(*logits.shape[:3], 1)
        return torch.cat([logits, sink], -1).softmax(-1)[..., :-1].nan_to_num().float()
    return logits.softmax(-1).nan_to_num_().float()
