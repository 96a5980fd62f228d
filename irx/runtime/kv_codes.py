"""Codings: how keys or values of one head become the elements of a plane, and back.

`Plain` keeps numbers as they are. `SymmetricBytes` (a cache of dtype i8) keeps bytes and one f32 scale per token: its
largest channel is 127. `TokenCodes` (`token8`, `token4`) keeps unsigned codes, and per token a float16 step and a
float16 lowest value; codes of 4 bits lie two to a byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from irx.ops.precision import HALF_MAX, LEAST_STEP, RELATIVE_STEP


@dataclass(frozen=True)
class Plain:
    """Numbers in a dtype of torch; `parameters` are the names and dtypes of what is kept per token beside them."""

    dtype: torch.dtype
    parameters: ClassVar[Mapping[str, torch.dtype]] = {}

    @property
    def empty(self) -> int:
        """What a slot without a token holds."""
        return 0

    def width(self, channels: int) -> int:
        """Elements for so many channels."""
        return channels

    def encode(self, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Tokens [..., channels] as elements [..., width], and the parameters [...]."""
        return tokens.to(self.dtype), {}

    def decode(self, elements: Tensor, channels: int, parameters: Mapping[str, Tensor]) -> Tensor:
        """The tokens [..., channels], from at least as many elements as they have."""
        return elements[..., :channels]


@dataclass(frozen=True)
class SymmetricBytes(Plain):
    """Bytes from -127 to 127 with an `offset`, which is 128 for unsigned ones, and an f32 scale."""

    offset: int = 0
    parameters: ClassVar[Mapping[str, torch.dtype]] = {"scale": torch.float32}

    @property
    def empty(self) -> int:
        """The code of zero."""
        return self.offset

    def encode(self, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Bytes, and a scale for each token."""
        codes, scale = quantized(tokens)
        return (codes + self.offset).to(self.dtype), {"scale": scale}

    def decode(self, elements: Tensor, channels: int, parameters: Mapping[str, Tensor]) -> Tensor:
        """Codes times scales, in float32."""
        return (elements[..., :channels].float() - self.offset) * parameters["scale"][..., None]


@dataclass(frozen=True)
class TokenCodes(Plain):
    """Unsigned codes of 8 or 4 bits. A byte of two holds channel c below and channel c + `half` above, of 2 `half`."""

    bits: int = 8
    half: int = 1
    parameters: ClassVar[Mapping[str, torch.dtype]] = {"scale": torch.float16, "zero": torch.float16}

    def width(self, channels: int) -> int:
        """Bytes for so many channels."""
        return channels if self.bits == 8 else -(-channels // (2 * self.half)) * self.half

    def encode(self, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Bytes, and a step and a lowest value for each token."""
        codes, step, low = token_codes(tokens, self.bits)
        return self._packed(codes.to(torch.uint8)), {"scale": step, "zero": low}

    def decode(self, elements: Tensor, channels: int, parameters: Mapping[str, Tensor]) -> Tensor:
        """Codes times steps plus lowest values, in float32."""
        codes = self._unpacked(elements)[..., :channels].float()
        return codes * parameters["scale"].float()[..., None] + parameters["zero"].float()[..., None]

    def _packed(self, codes: Tensor) -> Tensor:
        if self.bits == 8:
            return codes
        whole = pad(codes, (0, 2 * self.width(codes.shape[-1]) - codes.shape[-1]))
        halves = whole.reshape(*whole.shape[:-1], -1, 2, self.half)
        return (halves[..., 0, :] | halves[..., 1, :] << 4).flatten(-2)

    def _unpacked(self, elements: Tensor) -> Tensor:
        if self.bits == 8:
            return elements
        halves = elements.reshape(*elements.shape[:-1], -1, self.half)
        return torch.stack([halves & 15, halves >> 4], -2).flatten(-3)


def quantized(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [..., channels] as whole numbers from -127 to 127 (in f32), and the f32 scale of each [...]."""
    wide = tokens.float()
    scale = wide.abs().amax(-1) / 127
    inverse = torch.where(scale > 0, 1 / scale.clamp_min(torch.finfo(torch.float32).tiny), 0)
    return torch.round(wide * inverse[..., None]).clamp(-127, 127), scale


def token_codes(tokens: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [..., channels] as codes (in f32), and the step and lowest value of each [...] in float16.

    The arithmetic of `irx.ops.precision.token_codes`, operation by operation.
    """
    top = 2**bits - 1
    rows = tokens.float().clamp(-HALF_MAX, HALF_MAX)
    least, most = rows.amin(-1), rows.amax(-1)
    low = least.half().float()
    low = torch.where(low > least, _half(low - _next_half(low)), low)
    step = _half((most - low) / top)
    step = torch.where(step * top + low < most, _half(step + _next_half(step)), step)
    step = torch.where(step == 0, 1.0, step)
    codes = torch.round((rows - low[..., None]) * (1 / step)[..., None]).clamp(0, top)
    return codes, step.half(), low.half()


def _half(x: Tensor) -> Tensor:
    return x.clamp(-HALF_MAX, HALF_MAX).half().float()


def _next_half(x: Tensor) -> Tensor:
    return x.abs() * RELATIVE_STEP + LEAST_STEP
