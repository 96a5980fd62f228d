"""The shapes of the bench as plain PyTorch with a static cache, for `torch.compile(mode="max-autotune")`.

The weights are the program's own, found by name, so that results can be compared. Four-bit products are PyTorch's own
(`_weight_int4pack_mm`): groups of 128 weights share a scale and a zero in bf16. The head is left in bf16 then, as it is
in what it is compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from irx.ir.program import Program
from irx.runtime.snapshot import tensor_of

Step = Callable[[], Tensor]
GROUP, INNER_TILES = 128, 8
EPSILON = 1e-5


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, as the shapes of its weights say; heads have 64 channels."""

    layers: int
    width: int
    heads: int
    groups: int
    channels: int = 64

    @classmethod
    def of(cls, program: Program) -> Shape:
        """Read them off the weights of a program."""
        names = [entry.weight.name for entry in program.weights]
        layers = sum(name.endswith("q_proj.weight") for name in names)
        first = "model.layers.0.self_attn."
        rows = {side: int(str(program.weights[f"{first}{side}_proj.weight"].shape[0])) for side in "qk"}
        width = int(str(program.weights["model.norm.weight"].shape[0]))
        return cls(layers, width, rows["q"] // cls.channels, rows["k"] // cls.channels)


class Product(nn.Module):
    """x @ w.T with weights in bf16, or in four bits."""

    weight: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor, four_bits: bool) -> None:
        super().__init__()
        self.rows, self.four_bits = weight.shape[0], four_bits
        packed, scales = _packed(weight) if four_bits else (weight, weight[:0])
        self.register_buffer("weight", packed)
        self.register_buffer("scales", scales)

    def forward(self, x: Tensor) -> Tensor:
        """[..., columns] to [..., rows]."""
        if not self.four_bits:
            return functional.linear(x, self.weight)
        flat = x.reshape(-1, x.shape[-1])
        return torch._weight_int4pack_mm(flat, self.weight, GROUP, self.scales).reshape(*x.shape[:-1], self.rows)


class Model(nn.Module):
    """The whole step: ids i64 [1, S] at positions i64 [S] to the logits of the last, caches written in place.

    Several tokens are a prompt from its start.
    """

    def __init__(self, program: Program, capacity: int, device: str, four_bits: bool = False) -> None:
        super().__init__()
        self.shape, self.load = Shape.of(program), program
        self.device = device
        self.embedding = self._take("model.embed_tokens.weight")
        self.frequencies = self._take("model.rotary_emb.inv_freq").float()
        self.norms = {name: self._take(name) for name in _norms(self.shape.layers)}
        names = [f"model.layers.{i}.{part}.weight" for i in range(self.shape.layers) for part in PARTS]
        made = {name.replace(".", "_"): Product(self._take(name), four_bits) for name in names}
        self.products = nn.ModuleDict(made)
        size = (1, self.shape.groups, capacity, self.shape.channels)
        self.caches = [self._cache(size) for _ in range(2 * self.shape.layers)]

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """The logits [1, vocabulary] of the last token."""
        x = self.embedding[ids]
        turns = positions[:, None].float() * self.frequencies[None]
        angles = torch.cat((turns, turns), -1)
        cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        slots = torch.arange(self.caches[0].shape[2], device=x.device)
        mask = slots[None] <= positions[:, None]
        for layer in range(self.shape.layers):
            x = x + self._attention(layer, self._norm(x, f"{layer}.input"), positions, cosine, sine, mask)
            x = x + self._mlp(layer, self._norm(x, f"{layer}.post_attention"))
        return functional.linear(self._norm(x[:, -1], "final"), self.embedding)

    def _attention(
        self, layer: int, x: Tensor, positions: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor
    ) -> Tensor:
        q, k, v = (self._heads(self._product(layer, f"self_attn.{side}_proj", x)) for side in "qkv")
        keys, values = self.caches[2 * layer : 2 * layer + 2]
        q, k = _rotated(q, cosine, sine), _rotated(k, cosine, sine)
        keys[:, :, positions], values[:, :, positions] = k, v
        if x.shape[1] > 1:  # a prompt, from the start: the fused kernels take no mask
            found = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            found = functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True)
        return self._product(layer, "self_attn.o_proj", found.transpose(1, 2).flatten(2))

    def _mlp(self, layer: int, x: Tensor) -> Tensor:
        gate = functional.silu(self._product(layer, "mlp.gate_proj", x))
        return self._product(layer, "mlp.down_proj", gate * self._product(layer, "mlp.up_proj", x))

    def _cache(self, size: tuple[int, ...]) -> Tensor:
        """Keys or values of a layer, at an address of their own that never changes: CUDA graphs may write there."""
        made = torch.zeros(size, dtype=self.embedding.dtype, device=self.device)
        torch._dynamo.mark_static_address(made)
        return made

    def _product(self, layer: int, part: str, x: Tensor) -> Tensor:
        made: Tensor = self.products[f"model.layers.{layer}.{part}.weight".replace(".", "_")](x)
        return made

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.shape.channels).transpose(1, 2)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        layer, _, kind = name.rpartition(".")
        weight = self.norms[f"model.layers.{layer}.{kind}_layernorm.weight" if layer else "model.norm.weight"]
        wide = x.float()
        return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)).to(x.dtype)

    def _take(self, name: str) -> Tensor:
        found = tensor_of(self.load.weights, name)
        assert isinstance(found, Tensor)
        return found.to(self.device)


PARTS = (*(f"self_attn.{side}_proj" for side in "qkvo"), *(f"mlp.{side}_proj" for side in ("gate", "up", "down")))


def decode_step(plain: Any, model: Any, ids: Tensor) -> Step:
    """A decode step of `model`, which is `plain` or compiled of it, behind `ids` [1, T], which `plain` reads.

    Every call does the same step again.
    """
    length = ids.shape[1]
    plain(ids, torch.arange(length, device=ids.device))
    token, place = ids[:, -1:].clone(), torch.tensor([length], device=ids.device)
    return lambda: model(token, place)


def prefill_step(model: Any, ids: Tensor) -> Step:
    """The logits behind `ids` [1, T], from the start every time."""
    places = torch.arange(ids.shape[1], device=ids.device)
    return lambda: model(ids, places)


def _norms(layers: int) -> list[str]:
    kinds = ("input_layernorm", "post_attention_layernorm")
    return ["model.norm.weight", *(f"model.layers.{i}.{kind}.weight" for i in range(layers) for kind in kinds)]


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat((-second, first), -1) * sine


def _packed(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes as PyTorch's kernel takes them, and [groups, rows, 2] scales and middles."""
    grouped = weight.float().view(weight.shape[0], -1, GROUP)
    low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    scale = (high - low).clamp(min=1e-6) / 15
    codes = ((grouped - low) / scale).round().clamp(0, 15).flatten(1).to(torch.int32)
    pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
    middle = low + scale * 8
    scales = torch.cat((scale, middle), -1).transpose(0, 1).contiguous().to(weight.dtype)
    return torch._convert_weight_to_int4pack(pairs, INNER_TILES), scales
