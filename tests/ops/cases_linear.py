"""Cases of matrix products, convolutions, norms, positions and experts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from irx.ir.blocks import unpack
from tests.ops.cases import Case, Floats, Ints, Packed


def _products() -> list[Case]:
    x, weight, bias = Floats((2, 7, 13)), Floats((5, 13)), Floats((5,))
    ids, table = Ints((2, 7), 0, 17), Floats((17, 5))
    dequantize = [
        Case("dequantize", (Packed((3, 512), form),), {"dtype": dtype}, _unpacked(form), ("f32",), label=form)
        for form, dtype in (("q8_0", "f32"), ("q4_k", "bf16"), ("q6_k", "f32"))
    ]
    return [
        Case("linear", (x, weight), torch=F.linear),
        Case("linear", (x, weight, bias), torch=F.linear, label="bias"),
        Case("linear", (Floats((1,)), Floats((1, 1)), Floats((1,))), torch=F.linear, label="ones"),
        Case("matmul", (Floats((2, 7, 13)), Floats((13, 5))), torch=torch.matmul),
        Case("matmul", (Floats((2, 1, 7, 3)), Floats((5, 3, 11))), torch=torch.matmul, label="broadcast"),
        Case("matmul", (Ints((7, 3), -4, 4), Ints((3, 5), -4, 4)), torch=torch.matmul, dtypes=("f32",), label="ints"),
        Case("embedding", (ids, table), torch=F.embedding),
        Case("embedding", (Ints((), 0, 17), table), torch=F.embedding, label="one"),
        *dequantize,
        *[Case("quantize", (Floats((3, 256)),), {"format": form}, label=form) for form in ("q8_0", "q4_1", "i4g64")],
        Case("round_activations", (Floats((2, 7, 96)),), torch=_rounded),
        Case("round_activations", (Floats((7, 5)),), {"bits": 4, "group": 5}, _rounded, label="4 bits"),
        Case("round_activations", (Floats((7, 64), scale=0.0),), torch=_rounded, label="zeros"),
        Case("round_tokens", (Floats((2, 3, 7, 13)),), {"code": "token4"}, label="4 bits"),
        Case("round_tokens", (Floats((7, 5), scale=300.0),), {"code": "token8"}, label="8 bits"),
        Case("round_tokens", (Floats((7, 1)),), {"code": "token4"}, label="one"),
        Case("round_tokens", (Floats((2, 7), scale=0.0),), {"code": "token8"}, label="zeros"),
    ]


def _rounded(x: torch.Tensor, bits: int = 8, group: int = 32) -> torch.Tensor:
    """One group after the other."""
    y, top = x.float().clone(), 2 ** (bits - 1) - 1
    for row in y.view(-1, group):
        scale = row.abs().max() / top
        row.copy_(torch.round(row * (1 / scale)) * scale if scale else row)
    return y.to(x.dtype)


def _unpacked(form: str) -> Any:
    def run(raw: torch.Tensor, dtype: str) -> torch.Tensor:
        values = torch.from_numpy(unpack(raw.numpy(), form))
        return values.bfloat16() if dtype == "bf16" else values

    return run


def _convolutions() -> list[Case]:
    line, plane = Floats((2, 6, 7)), Floats((2, 6, 7, 11))
    odd = {"stride": 2, "padding": 1, "dilation": 2}
    pairs = {"stride": (2, 3), "padding": (1, 2), "dilation": (1, 2)}
    return [
        Case("conv1d", (line, Floats((5, 6, 3))), torch=F.conv1d),
        Case("conv1d", (line, Floats((5, 6, 3)), Floats((5,))), odd, F.conv1d, label="strided"),
        Case("conv1d", (line, Floats((4, 3, 3)), None), {"groups": 2, "padding": 1}, F.conv1d, label="groups"),
        Case("conv2d", (plane, Floats((5, 6, 3, 1)), Floats((5,))), torch=F.conv2d),
        Case("conv2d", (plane, Floats((4, 3, 3, 3))), {**pairs, "groups": 2}, F.conv2d, label="strided"),
    ]


def _rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None = None, *, eps: float, cast_before_weight: bool = False
) -> torch.Tensor:
    y = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
    if weight is None:
        return y.to(x.dtype)
    return (y.to(x.dtype) * weight if cast_before_weight else y * weight.float()).to(x.dtype)


def _layer_norm(x: torch.Tensor, weight: Any = None, bias: Any = None, *, eps: float) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def _norms() -> list[Case]:
    x, weight, bias = Floats((2, 7, 13)), Floats((13,)), Floats((13,))
    return [
        Case("rms_norm", (x, weight), {"eps": 1e-6}, _rms_norm),
        Case("rms_norm", (x, weight), {"eps": 1e-5, "cast_before_weight": True}, _rms_norm, label="cast"),
        Case("rms_norm", (x,), {"eps": 1e-6}, _rms_norm, label="plain"),
        Case("layer_norm", (x, weight, bias), {"eps": 1e-5}, _layer_norm),
        Case("layer_norm", (x, None, bias), {"eps": 1e-5}, _layer_norm, label="bias"),
        Case("layer_norm", (x,), {"eps": 1e-5}, _layer_norm, label="plain"),
    ]


def _rope(
    x: torch.Tensor, positions: torch.Tensor, inv_freq: torch.Tensor, style: Any = "half", scale: Any = 1.0
) -> Any:
    """The published form: complex numbers times e^(i angle)."""
    angles = positions[:, None, :, None].float() * inv_freq.float()
    turn = torch.polar(torch.full_like(angles, scale), angles)
    half = len(inv_freq)
    rotated, rest = x[..., : 2 * half].float(), x[..., 2 * half :]
    if style == "half":
        pairs = torch.complex(rotated[..., :half], rotated[..., half:]) * turn
        y = torch.cat([pairs.real, pairs.imag], -1)
    else:
        pairs = torch.view_as_complex(rotated.reshape(*rotated.shape[:-1], half, 2).contiguous()) * turn
        y = torch.view_as_real(pairs).flatten(-2)
    return torch.cat([y.to(x.dtype), rest], -1)


def _relative_bias(positions_q: torch.Tensor, table: torch.Tensor, keys: int) -> torch.Tensor:
    distance = positions_q[:, :, None] - torch.arange(keys)
    return table[:, distance.clamp(0, table.shape[1] - 1)].transpose(0, 1)


def _positions() -> list[Case]:
    x, inv_freq = Floats((2, 3, 7, 16)), Floats((8,), above=0.01, dtype="f32")
    one, own = Ints((1, 7), 0, 50), Ints((2, 7), 0, 50)
    return [
        Case("rope", (x, one, inv_freq), torch=_rope),
        Case("rope", (x, own, inv_freq), {"scale": 1.3}, _rope, label="rows"),
        Case("rope", (x, own, Floats((3,), above=0.01, dtype="f32")), torch=_rope, label="partial"),
        Case("rope", (x, own, inv_freq), {"style": "interleaved"}, _rope, label="interleaved"),
        Case("rope", (x, own, Floats((5,), above=0.01, dtype="f32")), {"style": "interleaved"}, _rope, label="mixed"),
        Case("relative_bias", (Ints((2, 7), 0, 20), Floats((3, 5))), {"keys": 11}, _relative_bias),
    ]


def _moe(x: Any, index: Any, weights: Any, gate_up: Any, down: Any, b1: Any = None, b2: Any = None, **how: Any) -> Any:
    """One token and one expert at a time."""
    activation, alpha, limit = how.get("activation", "silu"), how.get("alpha", 1.702), how.get("limit")
    acts: dict[str, Any] = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda g: F.gelu(g, approximate="tanh")}
    act = acts.get(activation)
    rows = []
    for token, experts, shares in zip(x.float(), index, weights.float(), strict=True):
        total = torch.zeros_like(token)
        for e, share in zip(experts.tolist(), shares, strict=True):
            first, second = gate_up[e].float(), down[e].float()
            both = token @ first if how.get("transposed") else first @ token
            both = both if b1 is None else both + b1[e].float()
            gate, up = (both[::2], both[1::2]) if how.get("interleaved") else both.chunk(2)
            if limit is not None:
                gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
            hidden = gate * torch.sigmoid(alpha * gate) * (up + 1) if act is None else act(gate) * up
            y = hidden @ second if how.get("transposed") else second @ hidden
            total += share * (y if b2 is None else y + b2[e].float())
        rows.append(total)
    return torch.stack(rows).to(x.dtype)


def _experts() -> list[Case]:
    x, index, weights = Floats((7, 5)), Ints((7, 3), 0, 4), Floats((7, 3), above=0.1)
    plain = (x, index, weights, Floats((4, 6, 5)), Floats((4, 5, 3)))
    turned = (x, index, weights, Floats((4, 5, 6)), Floats((4, 3, 5)), Floats((4, 6)), Floats((4, 5)))
    published = {"activation": "swigluoai", "interleaved": True, "transposed": True, "limit": 0.7}
    return [
        Case("moe", plain, torch=_moe),
        Case("moe", plain, {"activation": "gelu"}, _moe, label="gelu"),
        Case("moe", (*plain, Floats((4, 6)), None), {"activation": "gelu_tanh"}, _moe, label="tanh"),
        Case("moe", turned, published, _moe, label="swigluoai"),
    ]


CASES = [*_products(), *_convolutions(), *_norms(), *_positions(), *_experts()]
