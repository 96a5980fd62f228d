"""Kernels on KV states. Appending writes into the state it is given: a graph threads every state through once."""

from __future__ import annotations

import torch
from torch import Tensor

from irx.backends.torch.attend import attend, causal_mask, visible
from irx.runtime.kv import KVState, Step, bucket, step_of

_UNLIMITED = 1 << 40


def kv_append(kv: KVState, k: Tensor, v: Tensor, pos: Tensor) -> KVState:
    step = kv.step or _step(kv, pos)
    if kv.positions is not None or step is None:
        return _append_anywhere(kv, k, v, pos)
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


def _append_anywhere(kv: KVState, k: Tensor, v: Tensor, pos: Tensor) -> KVState:
    """Into the slot that holds the position, else the slot of that number if it is empty, else the first empty one."""
    kv.positions = kv.slot_positions()
    behind = kv.step is not None and pos.shape[1] > 1 and _newer(kv.positions, pos)
    kv.lengths = tuple(max(n, int(row.max()) + 1) for n, row in zip(kv.lengths, pos, strict=True))
    if behind:
        return _append_behind(kv, k, v, pos)
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


def _newer(held: Tensor, pos: Tensor) -> bool:
    """True where all tokens at `pos` come after those of their row that are held."""
    newest = held.amax((1, 2))[:, None] if held.shape[2] else torch.full_like(pos[:, :1], -1)
    return bool(((pos > newest) | (pos < 0)).all())


def _append_behind(kv: KVState, k: Tensor, v: Tensor, pos: Tensor) -> KVState:
    """Many tokens of a session that are newer than all held, at once: into slots behind the last one in use of any row.

    Padding goes to a slot behind all of them, which is left empty.
    """
    assert kv.positions is not None, "states that may have holes know their positions"
    used = (kv.positions >= 0).any(1).any(0).nonzero()
    first = int(used[-1]) + 1 if len(used) else 0
    counted = (pos >= 0).cumsum(1) - 1
    spare = first + int(counted.max()) + 1
    kv.reserve(spare + 1, _UNLIMITED)
    slots = torch.where(pos < 0, spare, first + counted)
    rows = torch.arange(len(pos), device=pos.device)[:, None]
    kv.keys.scatter(rows, slots, k)
    kv.values.scatter(rows, slots, v)
    kv.positions.transpose(1, 2)[rows, slots] = pos[..., None].expand(-1, -1, kv.positions.shape[1]).to(torch.long)
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
    q: Tensor, kv: KVState, pos: Tensor, table: Tensor | None = None, sinks: Tensor | None = None, *, scale: float,
    window: int | None = None, softcap: float | None = None, causal: bool = True,
) -> Tensor:  # fmt: skip
    step = kv.step
    if step is None or not step.uniform or kv.positions is not None or not causal:
        return _attend_by_position(q, kv, pos, table, sinks, scale, window, softcap, causal)
    if table is None and q.shape[2] == 1:  # the newest token sees all there is
        first = 0 if window is None else max(0, step.end - window)
        keys, values = kv.keys.read(first, step.end), kv.values.read(first, step.end)
        return attend(q, keys.to(q.dtype), values.to(q.dtype), sinks=sinks, scale=scale, softcap=softcap)
    keys, values = kv.keys.read(0, step.end).to(q.dtype), kv.values.read(0, step.end).to(q.dtype)
    if table is None and step.start == 0 and (window is None or window >= step.end):
        return attend(q, keys, values, sinks=sinks, scale=scale, causal=True, softcap=softcap)
    mask = step.masks.get(window)
    if mask is None:
        mask = step.masks[window] = causal_mask(q.shape[2], step.end, q.device, step.start, window)
    bias = None if table is None else _bias(table, pos[:1], torch.arange(step.end, device=q.device)[None, None])
    return attend(q, keys, values, mask, bias, sinks, scale=scale, softcap=softcap)


def _attend_by_position(
    q: Tensor, kv: KVState, pos: Tensor, table: Tensor | None, sinks: Tensor | None, scale: float, window: int | None,
    softcap: float | None, causal: bool,
) -> Tensor:  # fmt: skip
    """Rows of unequal length, padding, or slots that hold any positions: what is seen is compared token by token."""
    slots = _held(kv)
    end = slots.shape[2]
    key = (window, causal)
    # Sites of one call share their mask where the state is dense, because then their slots are the same.
    masks = kv.step.masks if kv.step is not None and kv.positions is None else {}
    mask = masks.get(key)
    if mask is None:
        queries = pos[:, None, :, None]
        mask = visible(queries, slots[:, :, None], causal, window) & (slots >= 0)[:, :, None] & (queries >= 0)
        mask = masks[key] = _per_head(mask, q.shape[1])
    bias = None if table is None else _bias(table, pos, slots)
    keys, values = kv.keys.read(0, end).to(q.dtype), kv.values.read(0, end).to(q.dtype)
    return attend(q, keys, values, mask, bias, sinks, scale=scale, softcap=softcap)


def _held(kv: KVState) -> Tensor:
    """Positions of the slots that may be visible: [B, G, T], or [B, 1, T] where all heads hold the same."""
    if kv.positions is not None:
        return kv.positions
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
