"""Kernels that choose, gather and merge tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def topk_tokens(scores: Tensor, *, keep: int, first: int = 0, last: int = 1) -> Tensor:
    places = torch.arange(scores.shape[1], device=scores.device)
    protected = (places < first) | (places >= scores.shape[1] - last)
    ranked = scores.masked_fill(protected, torch.inf)
    return torch.sort(ranked, dim=1, descending=True, stable=True).indices[:, :keep].sort(1).values


def pool_scores(scores: Tensor, *, width: int, how: str = "avg") -> Tensor:
    padded = torch.nn.functional.pad(scores, (width // 2, width // 2))
    around = padded.unfold(1, width, 1)
    return around.mean(2) if how == "avg" else around.amax(2)


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    return x[_rows(x), index]


def scatter_tokens(x: Tensor, index: Tensor, source: Tensor) -> Tensor:
    return x.index_put((_rows(x), index), source)


def merge_tokens(x: Tensor, sizes: Tensor, index_from: Tensor, index_to: Tensor) -> tuple[Tensor, Tensor]:
    rows = _rows(x)
    wide = torch.promote_types(x.dtype, torch.float32)
    weighted = x.to(wide) * sizes[..., None]
    weighted = weighted.index_put((rows, index_to), weighted[rows, index_from], accumulate=True)
    total = sizes.index_put((rows, index_to), sizes[rows, index_from], accumulate=True)
    stays = torch.ones(sizes.shape, dtype=torch.bool, device=x.device).index_put(
        (rows, index_from), torch.tensor(False, device=x.device)
    )
    # A sort rather than a mask: the size of the result then depends on shapes alone, and nothing waits for the device.
    left = (~stays).sort(dim=1, stable=True).indices[:, : x.shape[1] - index_from.shape[1]]
    mean = torch.where(total[..., None] > 0, weighted / total.masked_fill(total == 0, 1)[..., None], x.to(wide))
    return mean[rows, left].to(x.dtype), total.gather(1, left)


def match_tokens(
    keys: Tensor, sizes: Tensor, received: Tensor | None = None, *, count: int, alpha: float = 0.0, first: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, length, _ = keys.shape
    every = torch.arange(length, device=keys.device)
    if count == 0:
        none = every[:0].expand(batch, 0)
        return none, none, every.repeat(batch, 1)
    flat = keys.transpose(1, 2).flatten(2).to(torch.promote_types(keys.dtype, torch.float32))
    unit = torch.nn.functional.normalize(flat, dim=2)
    sources, targets = every[first | 1 :: 2], every[first + first % 2 :: 2]
    like = unit[:, sources] @ unit[:, targets].mT
    likeness, best = like.masked_fill(sizes[:, None, targets] <= 0, -2.0).max(2)
    score = likeness if received is None else likeness - alpha * received[:, sources]
    ranked = score.masked_fill(sizes[:, sources] <= 0, torch.inf)
    chosen = torch.sort(ranked, dim=1, descending=True, stable=True).indices[:, :count].sort(1).values
    gone, into = sources[chosen], targets[best.gather(1, chosen)]
    places = torch.ones_like(every).repeat(batch, 1).scatter(1, gone, 0).cumsum(1) - 1
    return gone, into, places.scatter(1, gone, places.gather(1, into))


def _rows(x: Tensor) -> Tensor:
    return torch.arange(len(x), device=x.device)[:, None]
