"""Kernels that choose, gather and merge tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def topk_tokens(scores: Tensor, *, keep: int, first: int = 0, last: int = 1) -> Tensor:
    places = torch.arange(scores.shape[1], device=scores.device)
    protected = (places < first) | (places >= scores.shape[1] - last)
    ranked = scores.masked_fill(protected, torch.inf)
    return torch.sort(ranked, dim=1, descending=True, stable=True).indices[:, :keep].sort(1).values


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
    left = (len(x), sizes.shape[1] - index_from.shape[1])
    merged = (weighted / total[..., None])[stays].to(x.dtype)
    return merged.reshape(*left, x.shape[2]), total[stays].reshape(left)


def _rows(x: Tensor) -> Tensor:
    return torch.arange(len(x), device=x.device)[:, None]
