"""Cases of token selection, merging and sampling."""

from __future__ import annotations

from typing import Any

import torch

from tests.ops.cases import Case, Fixed, Floats, Ints

X = Floats((2, 7, 5))
INDEX = Fixed([[0, 2, 6], [1, 3, 4]])


def _topk(scores: torch.Tensor, keep: int, first: int = 0, last: int = 1) -> torch.Tensor:
    ranked = scores.float().clone()
    ranked[:, :first] = torch.inf
    ranked[:, ranked.shape[1] - last :] = torch.inf
    return ranked.sort(dim=1, descending=True, stable=True).indices[:, :keep].sort(dim=1).values


def _pool(scores: torch.Tensor, width: int, how: str = "avg") -> torch.Tensor:
    if how == "avg":
        return torch.nn.functional.avg_pool1d(scores.float()[:, None], width, 1, width // 2)[:, 0].to(scores.dtype)
    padded = torch.nn.functional.pad(scores.float(), (width // 2, width // 2))
    return torch.nn.functional.max_pool1d(padded[:, None], width, 1)[:, 0].to(scores.dtype)


def _gather(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return torch.stack([row[chosen] for row, chosen in zip(x, index, strict=True)])


def _scatter(x: torch.Tensor, index: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    result = x.clone()
    for row, chosen, new in zip(result, index, source, strict=True):
        row[chosen] = new
    return result


def _merge(x: torch.Tensor, sizes: torch.Tensor, index_from: torch.Tensor, index_to: torch.Tensor) -> Any:
    tokens, counts = [], []
    for row, size, sources, targets in zip(x.float(), sizes, index_from.tolist(), index_to.tolist(), strict=True):
        groups = {i: [i] for i in range(len(row)) if i not in sources}
        for source, target in zip(sources, targets, strict=True):
            groups[target].append(source)
        weight = [size[group] for group in groups.values()]
        counts.append(torch.stack([w.sum() for w in weight]))
        tokens.append(
            torch.stack([(row[g] * w[:, None]).sum(0) / w.sum() for g, w in zip(groups.values(), weight, strict=True)])
        )
    return torch.stack(tokens).to(x.dtype), torch.stack(counts)


def _match(keys: Any, sizes: Any, received: Any = None, *, count: int, alpha: float = 0.0, first: int = 1) -> Any:
    batch, _, length, _ = keys.shape
    like = torch.cosine_similarity(
        *(keys.double().transpose(1, 2).flatten(2).unsqueeze(axis) for axis in (2, 1)), dim=3
    )
    results: list[tuple[list[int], list[int], list[int]]] = []
    for b in range(batch):
        partner, score = {}, {}
        for i in range(first | 1, length, 2):
            open_ = [j for j in range(first, length) if j % 2 == 0]
            real = [j for j in open_ if sizes[b, j] > 0] or open_
            partner[i] = max(real, key=lambda j: (float(like[b, i, j]), -j))
            worth = float(like[b, i, partner[i]]) - (alpha * float(received[b, i]) if received is not None else 0)
            score[i] = worth if sizes[b, i] > 0 else float("inf")
        gone = sorted(sorted(score, key=lambda i: (-score[i], i))[:count])
        kept = [i for i in range(length) if i not in gone]
        results.append(
            (gone, [partner[i] for i in gone], [kept.index(partner[i] if i in gone else i) for i in range(length)])
        )
    return tuple(torch.tensor(list(item)) for item in zip(*results, strict=True))


def _sample(logits: Any, uniform: Any, temperature: float, top_k: Any = None, top_p: Any = None) -> Any:
    if temperature == 0:
        return logits.argmax(1)
    values, ids = (logits.double() / temperature).sort(dim=1, descending=True, stable=True)
    if top_k is not None:
        values, ids = values[:, :top_k], ids[:, :top_k]
    p = values.softmax(1)
    if top_p is not None:
        p = torch.where(p.cumsum(1) - p < top_p, p, 0.0)
    total = p.cumsum(1)
    place = torch.searchsorted(total, uniform.double()[:, None] * total[:, -1:], right=True)
    return ids.gather(1, place)[:, 0]


def _cases() -> list[Case]:
    logits, uniform = Floats((7, 13)), Fixed([0.0, 0.1, 0.3, 0.5, 0.8, 0.95, 0.999], keep=True)
    keys, received = Floats((2, 3, 9, 4)), Floats((2, 9), above=0.0)
    padded = Fixed([[1.0, 2.0, 1.0, 1.0, 3.0, 1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]])
    one = ("f32",)
    equal = Fixed([[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 2.0, 1.0, 2.0, 0.0, 0.0]])
    return [
        Case("topk_tokens", (Floats((2, 11)),), {"keep": 5}, _topk),
        Case("topk_tokens", (Floats((2, 11)),), {"keep": 5, "first": 2, "last": 2}, _topk, label="protected"),
        Case("topk_tokens", (equal,), {"keep": 3, "last": 0}, _topk, label="ties"),
        Case("pool_scores", (Floats((2, 11)),), {"width": 5}, _pool),
        Case("pool_scores", (Floats((2, 11)),), {"width": 3, "how": "max"}, _pool, label="max"),
        Case("gather_tokens", (X, INDEX), torch=_gather),
        Case("gather_tokens", (Ints((2, 7), 0, 99), INDEX), torch=_gather, dtypes=one, label="positions"),
        Case("scatter_tokens", (X, INDEX, Floats((2, 3, 5))), torch=_scatter),
        Case(
            "merge_tokens",
            (X, Floats((2, 7), above=1.0, dtype="f32"), Fixed([[1, 3], [5, 1]]), Fixed([[0, 0], [6, 2]])),
            torch=_merge,
            named=False,
        ),
        Case("match_tokens", (keys, Floats((2, 9), above=1.0)), {"count": 3}, _match, one),
        Case("match_tokens", (keys, padded, received), {"count": 3, "alpha": 2.0}, _match, one, label="padded"),
        Case("match_tokens", (keys, Floats((2, 9), above=1.0)), {"count": 4, "first": 0}, _match, one, label="all"),
        Case("sample", (logits, uniform), {"temperature": 0.0}, _sample, one),
        Case("sample", (logits, uniform), {"temperature": 0.7}, _sample, one, label="all"),
        Case("sample", (logits, uniform), {"temperature": 1.0, "top_k": 4}, _sample, one, label="top-k"),
        Case("sample", (logits, uniform), {"temperature": 1.3, "top_k": 9, "top_p": 0.6}, _sample, one, label="top-p"),
    ]


CASES = _cases()
