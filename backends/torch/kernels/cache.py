"""Kernels on KV states. Appending writes into the state it is given: a graph threads every state through once."""

from __future__ import annotations

import torch
from torch import Tensor

from irx.backends.torch import tailed
from irx.backends.torch.attend import attend, causal_mask, visible, weigh
from irx.backends.torch.kernels.attention import merge_attention
from irx.runtime.kv import KVState, Step, bucket, step_of
from irx.runtime.kv_kept import Kept
from irx.runtime.kv_ring import Ring
from irx.runtime.kv_tailed import TailedPlane

_UNLIMITED = 1 << 40


def kv_append(kv: KVState, k: Tensor, v: Tensor, pos: Tensor, slots: Tensor | None = None) -> KVState:
    if isinstance(kv.keys, TailedPlane):
        return tailed.append(kv, k, v, pos)
    if kv.kept is not None:
        return _append_kept(kv, k, v, pos)
    step = kv.step or _step(kv, pos)
    if kv.positions is not None or step is None:
        return _append_anywhere(kv, k, v, pos)
    if kv.paged is not None:
        return _append_paged(kv, step, k, v, pos)
    kv.reserve(step.needed, _UNLIMITED)
    kv.lengths = step.lengths
    if step.uniform:
        kv.keys.write(step.start, k)
        kv.values.write(step.start, v)
        return kv
    # Padding goes to the slot after the longest row, which no query sees before it is written again.
    slots = torch.where(pos < 0, step.end, pos)
    rows = torch.arange(len(pos), device=pos.device)[:, None]
    kv.keys.scatter(rows, slots, k)
    kv.values.scatter(rows, slots, v)
    return kv


def _step(kv: KVState, pos: Tensor) -> Step | None:
    """The step for a call without a session; looks at the positions."""
    return step_of(kv.lengths, pos.tolist())


def _append_paged(kv: KVState, step: Step, k: Tensor, v: Tensor, pos: Tensor) -> KVState:
    """Into the pages that hold the slots of these positions; padding has none."""
    if kv.step is None:
        kv.own()
    kv.admit(step, _UNLIMITED)
    kv.lengths = step.lengths
    rows, columns = (pos >= 0).nonzero(as_tuple=True)
    slots = pos[rows, columns]
    heads = torch.arange(k.shape[1], device=pos.device), torch.arange(v.shape[1], device=pos.device)
    for plane, own, tokens in zip((kv.keys, kv.values), heads, (k, v), strict=True):
        plane.put(rows[:, None], own, slots[:, None], tokens[rows, :, columns])
    return kv


def _append_anywhere(kv: KVState, k: Tensor, v: Tensor, pos: Tensor) -> KVState:
    """Into the slot that holds the position, else the slot of that number if it is empty, else the first empty one."""
    kv.loosen()
    assert kv.positions is not None, "a loosened state carries its positions"
    kv.lengths = tuple(max(n, int(row.max()) + 1) for n, row in zip(kv.lengths, pos, strict=True))
    for s in range(pos.shape[1]):
        if not bool(((kv.positions < 0).sum(2) > 0).all()) or kv.capacity == 0:
            kv.reserve(bucket(kv.capacity + 1, _UNLIMITED), _UNLIMITED)
        slots = _slots(kv.positions, pos[:, s])
        here = (pos[:, s] >= 0)[:, None].expand_as(slots)
        b, g = here.nonzero(as_tuple=True)
        at = slots[b, g]
        kv.keys.put(b, g, at, k[b, g, s])
        kv.values.put(b, g, at, v[b, g, s])
        kv.positions[b, g, at] = pos[b, s].to(kv.positions.dtype)
    return kv


def _append_kept(kv: KVState, k: Tensor, v: Tensor, pos: Tensor) -> KVState:
    """Behind the tokens that a state still has, or anywhere where they are not all newer than those."""
    kept, step = kv.kept, kv.step
    assert kept is not None, "the state knows which tokens it has"
    if isinstance(kept, Ring):
        return _append_turning(kv, kept, k, v, pos)
    if step is not None and step.uniform and kept.common is not None and pos.shape[1] == step.end - step.start:
        first = step.start - kept.common
        if first >= max(kept.counts):
            kv.reserve(first + pos.shape[1], _UNLIMITED)
            kv.keys.write(first, k)
            kv.values.write(first, v)
            kv.lengths = step.lengths
            return kv
    before = _before(kv, pos)
    if any(used < count for used, count in zip(kept.used(before), kept.counts, strict=True)):
        return _append_anywhere(kv, k, v, pos)
    return _append_behind(kv, kept, before, k, v, pos)


def _before(kv: KVState, pos: Tensor) -> tuple[int, ...]:
    """How long the rows were before tokens at `pos` came: who makes room may have noted the new lengths already."""
    starts = pos.masked_fill(pos < 0, torch.iinfo(torch.int64).max).amin(1).tolist()
    return tuple(min(pair) for pair in zip(kv.lengths, starts, strict=True))


def _append_turning(kv: KVState, ring: Ring, k: Tensor, v: Tensor, pos: Tensor) -> KVState:
    """A token of each row in the slot of its position, where its oldest one was."""
    kv.lengths = tuple(n + 1 for n in kv.lengths) if kv.step is None else kv.step.lengths
    ring.reserve(kv, max(kv.lengths))
    rows = torch.arange(len(pos), device=pos.device)[:, None]
    slots = ring.slots_of(pos)
    kv.keys.scatter(rows, slots, k)
    kv.values.scatter(rows, slots, v)
    return kv


def _append_behind(kv: KVState, kept: Kept, before: tuple[int, ...], k: Tensor, v: Tensor, pos: Tensor) -> KVState:
    """Tokens newer than all held, perhaps not all that there were. Padding goes behind the last slot in use."""
    used = kept.used(before)
    counts = (pos >= 0).sum(1).tolist()
    after = tuple(n + count for n, count in zip(used, counts, strict=True))
    kv.reserve(max(after) + 1, _UNLIMITED)
    first = torch.tensor(used, device=pos.device)[:, None]
    slots = torch.where(pos < 0, max(after), first + (pos >= 0).cumsum(1) - 1)
    rows = torch.arange(len(pos), device=pos.device)[:, None]
    kv.keys.scatter(rows, slots, k)
    kv.values.scatter(rows, slots, v)
    lengths = tuple(max(n, int(row.max()) + 1) for n, row in zip(kv.lengths, pos, strict=True))
    lengths = kv.step.lengths if kv.step is not None else lengths
    if any(new - old != count for new, old, count in zip(lengths, before, counts, strict=True)):
        held = kept.slot_positions(max(after) + 1, before)
        held.transpose(1, 2)[rows, slots] = pos[..., None].expand(-1, -1, held.shape[1])
        kv.kept = Kept(held[:, :, : max(after)].int(), after, lengths, kept.floor)
    kv.lengths = lengths
    return kv


def _slots(positions: Tensor, wanted: Tensor) -> Tensor:
    """The slot [B, G] for a token of position `wanted` [B] among slots that hold `positions` [B, G, T]."""
    held = positions == wanted[:, None, None]
    own = wanted.clamp(0, positions.shape[2] - 1)[:, None, None].expand(*positions.shape[:2], 1)
    own_is_free = (positions.gather(2, own) < 0)[..., 0] & (wanted < positions.shape[2])[:, None]
    empty = (positions < 0).int().argmax(2)
    slot = torch.where(own_is_free, own[..., 0], empty)
    return torch.where(held.any(2), held.int().argmax(2), slot)


def kv_attention(
    q: Tensor, kv: KVState, pos: Tensor, table: Tensor | None = None, sinks: Tensor | None = None,
    slots: Tensor | None = None, *, scale: float, window: int | None = None, softcap: float | None = None,
    causal: bool = True, first: int = 0,
) -> Tensor:  # fmt: skip
    if isinstance(kv.keys, TailedPlane):
        places = torch.arange(max(kv.lengths), device=q.device)[None, None]
        added = None if table is None else lambda a, b: _bias(table, pos[:, a:b], places)
        return tailed.attend_state(q, kv, pos, tailed.Rules(scale, window, softcap, sinks, None, added))
    if kv.prefix is not None:
        return _attend_with_prefix(q, kv, pos, sinks, scale, softcap)
    step = kv.step
    if kv.kept is not None and _sees_all_kept(q, kv, table, window):
        end = max(kv.kept.used(kv.lengths))
        keys, values = kv.keys.read(0, end), kv.values.read(0, end)
        return attend(q, keys.to(q.dtype), values.to(q.dtype), sinks=sinks, scale=scale, softcap=softcap)
    dense = kv.kept is None and kv.positions is None and causal and not (first and window is not None)
    if step is None or not step.uniform or not dense:
        return _attend_by_position(q, kv, pos, table, sinks, scale, window, softcap, causal, first)
    if table is None and q.shape[2] == 1:  # the newest token sees all there is
        start = 0 if window is None else max(0, step.end - window)
        keys, values = kv.keys.read(start, step.end), kv.values.read(start, step.end)
        return attend(q, keys.to(q.dtype), values.to(q.dtype), sinks=sinks, scale=scale, softcap=softcap)
    keys, values = kv.keys.read(0, step.end).to(q.dtype), kv.values.read(0, step.end).to(q.dtype)
    if table is None and step.start == 0 and (window is None or window >= step.end):
        return attend(q, keys, values, sinks=sinks, scale=scale, causal=True, softcap=softcap)
    mask = step.masks.get(window)
    if mask is None:
        mask = step.masks[window] = causal_mask(q.shape[2], step.end, q.device, step.start, window)
    bias = None if table is None else _bias(table, pos[:1], torch.arange(step.end, device=q.device)[None, None])
    return attend(q, keys, values, mask, bias, sinks, scale=scale, softcap=softcap)


def _attend_with_prefix(
    q: Tensor, kv: KVState, pos: Tensor, sinks: Tensor | None, scale: float, softcap: float | None
) -> Tensor:
    """The queries of all rows to the prefix they share, as one product; to each row's own tokens; the two merged."""
    assert kv.prefix is not None and kv.kept is not None, "a state that shares a prefix knows how long that is"
    batch, heads, rows, width = q.shape
    groups, length = kv.keys.heads, kv.prefix.lengths[0]
    keys, values = kv.prefix.keys.read(0, length), kv.prefix.values.read(0, length)
    stacked = q.reshape(batch, groups, -1, width).transpose(0, 1).reshape(1, groups, -1, width)
    out, lse = weigh(stacked, keys, values, None, None, None, scale=scale, softcap=softcap)
    out = out.reshape(groups, batch, -1, values.shape[3]).transpose(0, 1).reshape(batch, heads, rows, -1)
    lse = lse.reshape(groups, batch, -1).transpose(0, 1).reshape(batch, heads, rows)
    end = max(kv.kept.used(kv.lengths))
    slots, queries = kv.slot_positions()[:, :1, None, :end], pos[:, None, :, None]
    mask = (slots <= queries) & (slots >= 0)
    keys, values = kv.keys.read(0, end), kv.values.read(0, end)
    own, own_lse = weigh(q, keys, values, mask, None, sinks, scale=scale, softcap=softcap)
    return merge_attention(out, lse, own, own_lse)[0] * (queries >= 0)


def _sees_all_kept(q: Tensor, kv: KVState, table: Tensor | None, window: int | None) -> bool:
    """True for the newest token of rows that are equally long, which sees all that is left."""
    step, kept = kv.step, kv.kept
    alike = step is not None and step.uniform and kept is not None and kept.common is not None
    return alike and q.shape[2] == 1 and table is None and (window is None or isinstance(kept, Ring))


def _attend_by_position(
    q: Tensor, kv: KVState, pos: Tensor, table: Tensor | None, sinks: Tensor | None, scale: float, window: int | None,
    softcap: float | None, causal: bool, first: int = 0,
) -> Tensor:  # fmt: skip
    """Rows of unequal length, padding, or slots that hold any positions: what is seen is compared token by token."""
    slots = _held(kv)
    end = slots.shape[2]
    key = (window, causal, first)
    # Sites of one call share their mask where the state is dense, because then their slots are the same.
    masks = kv.step.masks if kv.step is not None and kv.positions is None and kv.kept is None else {}
    mask = masks.get(key)
    if mask is None:
        queries = pos[:, None, :, None]
        seen = visible(queries, slots[:, :, None], causal, window)
        if first and window is not None:
            seen = seen | (visible(queries, slots[:, :, None], causal, None) & (slots < first)[:, :, None])
        mask = seen & (slots >= 0)[:, :, None] & (queries >= 0)
        mask = masks[key] = _per_head(mask, q.shape[1])
    bias = None if table is None else _bias(table, pos, slots)
    keys, values = kv.keys.read(0, end).to(q.dtype), kv.values.read(0, end).to(q.dtype)
    return attend(q, keys, values, mask, bias, sinks, scale=scale, softcap=softcap)


def _held(kv: KVState) -> Tensor:
    """Positions of the slots that may be visible: [B, G, T], or [B, 1, T] where all heads hold the same."""
    if kv.positions is not None:
        return kv.positions
    if kv.kept is not None:
        heads = slice(None) if kv.ring is None else slice(1)  # of which all hold the same
        return kv.slot_positions()[:, heads, : max(kv.kept.used(kv.lengths))]
    shared = kv.step.masks if kv.step is not None else {}
    slots = shared.get("slots")
    if slots is None:
        slots = shared["slots"] = kv.slot_positions()[:, :1, : max(kv.lengths)]
    return slots


def _per_head(mask: Tensor, heads: int) -> Tensor:
    groups = mask.shape[1]
    return mask if groups in (1, heads) else mask.repeat_interleave(heads // groups, 1)


def _bias(table: Tensor, pos: Tensor, slots: Tensor) -> Tensor:
    """table[h, clamp(pos - slot position)] as [B, H, S, T], for pos [B, S] and slots [B, 1 or G, T]."""
    distance = (pos[:, None, :, None] - slots[:, :, None]).clamp(0, table.shape[1] - 1)
    heads = table.shape[0]
    if distance.shape[1] == 1:
        return table[:, distance[:, 0]].transpose(0, 1)
    return table[torch.arange(heads, device=table.device)[:, None, None], _per_head(distance, heads)]


def kv_gather(kv: KVState, index: Tensor) -> KVState:
    return kv.take(index)


def kv_evict(kv: KVState, scores: Tensor, *, keep: int, sinks: int = 4, recent: int = 32) -> KVState:
    positions = kv.slot_positions()
    if positions.shape[2] <= keep:
        return kv
    scores = scores[..., : positions.shape[2]]
    positions = positions[..., : scores.shape[2]]
    length = positions.amax(2, keepdim=True) + 1
    protected = (positions < sinks) | (positions >= length - recent)
    ranked = scores.float().masked_fill(protected, torch.inf).masked_fill(positions < 0, -torch.inf)
    best = torch.sort(ranked, dim=2, descending=True, stable=True).indices[..., :keep]
    return kv.take(best.sort(2).values)
