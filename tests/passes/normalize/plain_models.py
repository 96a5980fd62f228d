"""Language models in plain torch, each with attention and positions spelled its own way; nothing of transformers."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, WIDTH, HEADS, LENGTH = 64, 32, 4, 48

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Block(nn.Module):
    """Pre-norm attention and MLP; `attend` takes q [B, H, S, D], k and v [B, G, S, D]."""

    def __init__(self, attend: Attend, kv_heads: int = HEADS) -> None:
        super().__init__()
        self.attend = attend
        self.kv_heads = kv_heads
        size = WIDTH // HEADS
        self.norm, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k, self.v = nn.Linear(WIDTH, kv_heads * size), nn.Linear(WIDTH, kv_heads * size)
        self.up, self.down = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        y = self.norm(x)
        q = self.q(y).view(batch, length, HEADS, -1).transpose(1, 2)
        k, v = (p(y).view(batch, length, self.kv_heads, -1).transpose(1, 2) for p in (self.k, self.v))
        x = x + self.out(self.attend(q, k, v).transpose(1, 2).reshape(batch, length, WIDTH))
        result: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return result


class Model(nn.Module):
    """Embeddings, positions, two blocks, a head. `positions` adds positions to [B, S, D]."""

    def __init__(
        self, attend: Callable[[], Attend], positions: Callable[[], nn.Module] = nn.Identity, kv_heads: int = HEADS
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = positions()
        made = [attend() for _ in range(2)]
        self.blocks = nn.ModuleList(Block(a, kv_heads) for a in made)
        self.attention = nn.ModuleList(a for a in made if isinstance(a, nn.Module))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.positions(self.embed(input_ids))
        for block in self.blocks:
            x = block(x)
        result: Tensor = self.head(self.norm(x))
        return result


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The causal flag, and KV heads repeated by repeat_interleave."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Filled(nn.Module):
    """A triangular buffer, cut to the length, filled in where a key is hidden."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.tril(torch.ones(LENGTH, LENGTH))[None, None])

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length = q.shape[2]
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.shape[-1]))
        scores = scores.masked_fill(self.seen[:, :, :length, :length] == 0, float("-inf"))
        return F.softmax(scores, dim=-1) @ v


def window_added(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A sliding window of 5 as an additive mask; scores divided, and capped."""
    place = torch.arange(q.shape[2], device=q.device)
    distance = place[:, None] - place[None, :]
    mask = torch.where((distance >= 0) & (distance < 5), 0.0, torch.finfo(q.dtype).min)
    scores = torch.tanh(q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]) / 30.0) * 30.0 + mask
    return torch.softmax(scores.float(), -1).to(q.dtype) @ v


def slopes(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Linear biases that depend on the key only, as softmax sees no difference, with a causal mask added."""
    length = q.shape[2]
    slope = torch.tensor([2.0 ** -(2 * i + 1) for i in range(HEADS)]).view(1, HEADS, 1, 1)
    bias = slope * (torch.arange(length) - length + 1).view(1, 1, 1, length)
    mask = torch.full((length, length), float("-inf")).triu(1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias + mask)


def flat(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Batch and heads as one axis, by batched matrix products."""
    batch, heads, length, size = q.shape
    q, k, v = (x.reshape(batch * heads, length, -1) for x in (q * size**-0.5, k, v))
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    scores = torch.bmm(q, k.transpose(1, 2)).view(batch, heads, length, length)
    scores = scores + torch.zeros(length, length).masked_fill(~seen, torch.finfo(q.dtype).min)
    p = torch.softmax(scores, -1).view(batch * heads, length, length)
    return torch.bmm(p, v).view(batch, heads, length, -1)


class Buckets(nn.Module):
    """A learned bias for each distance, the last one for all that are farther."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, HEADS)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        place = torch.arange(q.shape[2])
        distance = (place[:, None] - place[None, :]).clamp(0, 8)
        bias = self.table(distance).permute(2, 0, 1)[None]
        hidden = place[None, :] > place[:, None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.masked_fill(hidden, float("-inf")), scale=0.3)


class Looked(nn.Module):
    """Learned positions, looked up by number."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(LENGTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.table(torch.arange(x.shape[1]))
        return result


class Cut(nn.Module):
    """Learned positions, cut from a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, LENGTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table[:, : x.shape[1]]


class Waves(nn.Module):
    """Sines and cosines, computed from floats that count from 1."""

    def forward(self, x: Tensor) -> Tensor:
        place = torch.cumsum(torch.ones(x.shape[:2]), 1)[..., None]
        angle = place * torch.exp(torch.arange(0, WIDTH, 2) * (-math.log(100.0) / WIDTH))
        return x + torch.cat([angle.sin(), angle.cos()], -1)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "repeated": lambda: Model(lambda: sdpa, Looked, kv_heads=2),
    "filled": lambda: Model(Filled, Cut),
    "window": lambda: Model(lambda: window_added, Waves),
    "slopes": lambda: Model(lambda: slopes),
    "flat": lambda: Model(lambda: flat, Looked),
    "buckets": lambda: Model(Buckets),
}


def build(name: str) -> nn.Module:
    """A model with seeded random weights, in evaluation mode."""
    torch.manual_seed(0)
    return MODELS[name]().eval().requires_grad_(False)
