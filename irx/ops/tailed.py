"""Attention that sees old keys and values as codes and the newest as they are, as a cache with a tail shows them."""

from __future__ import annotations

import numpy as np

from irx.ir.codes import TailedCode, tailed
from irx.ir.dims import Dim, minimum
from irx.ir.opdef import Array, OpDef
from irx.ir.types import TensorType
from irx.ops.attend import logits_of, visible_keys, weigh
from irx.ops.attention import Attention, attention_flops
from irx.ops.precision import token_codes
from irx.ops.shapes import need


def rounded_keys(k: Array, code: TailedCode) -> Array:
    """Keys [..., T, D] as their codes say: every channel of `group` tokens on its own grid. A last part group stays."""
    whole = k.shape[-2] // code.group * code.group
    found = np.array(k, dtype=np.float64)
    groups = np.swapaxes(k[..., :whole, :].reshape(*k.shape[:-2], -1, code.group, k.shape[-1]), -1, -2)
    found[..., :whole, :] = np.swapaxes(_rounded(groups, code.bits), -1, -2).reshape(found[..., :whole, :].shape)
    return found


def rounded_values(v: Array, code: TailedCode) -> Array:
    """Values [..., T, D] as their codes say: every `group` channels of a token on their own grid."""
    return _rounded(v.reshape(*v.shape[:-1], -1, code.group), code.bits).reshape(v.shape)


def _rounded(rows: Array, bits: int) -> Array:
    if rows.size == 0:
        return np.asarray(rows, dtype=np.float64)
    codes, step, low = token_codes(rows, bits)
    return np.asarray(codes * step.astype(np.float64) + low)


class Tailed:
    """Keys k [..., T, D] and values v [..., T, Dv] of positions 0, 1, ... and what a query sees of them."""

    def __init__(self, k: Array, v: Array, code: TailedCode) -> None:
        self.k, self.v, self.code = k, v, code
        self.coded_k, self.coded_v = rounded_keys(k, code), rounded_values(v, code)

    def seen_at(self, position: int, place: tuple[int, ...], value_place: tuple[int, ...]) -> tuple[Array, Array]:
        """Keys [T, D] and values [T, Dv] of one row and head, as the query at a position sees them."""
        slots = np.arange(self.k.shape[-2])[:, None]
        k = np.where(slots < self.code.coded_keys(position), self.coded_k[place], self.k[place])
        return k, np.where(slots < self.code.coded_values(position), self.coded_v[value_place], self.v[value_place])


class CodedAttention(OpDef):
    """Causal `attention` whose row i sees keys and values as the query at position i of a cache of `code` does.

    q [B, H, S, D], k [B, G, S, D], v [B, G, S, Dv] give [B, H, S, Dv]. For `kivi2-32-128`: keys below i - i mod 128 are
    rounded to 2 bits in each channel of 32 tokens, values below i - 127 in each 32 channels of a token; later ones are
    as they are. (KIVI, Liu et al. 2024, arXiv:2402.02750.)
    """

    name = "coded_attention"

    @staticmethod
    def infer(
        q: TensorType,
        k: TensorType,
        v: TensorType,
        mask: TensorType | None = None,
        bias: TensorType | None = None,
        sinks: TensorType | None = None,
        *,
        code: str,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> TensorType:
        found = tailed(code)
        need(found is not None, f"there is no code {code!r} with a tail")
        width = v.shape[3]
        whole = found is not None and isinstance(width, int) and width % found.group == 0
        need(whole, f"values {v} are no whole groups of {code}")
        return Attention.infer(q, k, v, mask, bias, sinks, scale=scale, causal=True, window=window, softcap=softcap)

    @staticmethod
    def reference(
        q: Array,
        k: Array,
        v: Array,
        mask: Array | None = None,
        bias: Array | None = None,
        sinks: Array | None = None,
        *,
        code: str,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Array:
        found = tailed(code)
        assert found is not None, "infer has seen to it"
        batch, heads, rows, _ = q.shape
        full = (batch, heads, rows, k.shape[2])
        shown, group = Tailed(k, v, found), heads // k.shape[1]
        out = np.zeros((batch, heads, rows, v.shape[3]))
        for b, h, i in np.ndindex(batch, heads, rows):
            seen = visible_keys(i, np.arange(k.shape[2]), True, window)
            seen = seen if mask is None else seen & np.broadcast_to(mask, full)[b, h, i]
            keys, values = shown.seen_at(i, (b, h // group), (b, h // group))
            extra = None if bias is None else np.broadcast_to(bias, full)[b, h, i][seen]
            sink = None if sinks is None else float(sinks[h])
            out[b, h, i] = weigh(logits_of(q[b, h, i], keys[seen], scale, softcap, extra), values[seen], sink)[0]
        return out

    @staticmethod
    def flops(
        q: TensorType,
        k: TensorType,
        v: TensorType,
        mask: TensorType | None = None,
        bias: TensorType | None = None,
        sinks: TensorType | None = None,
        *,
        code: str,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Dim:
        """Attention, and the rounding of all keys and values."""
        keys = k.shape[2] if window is None else minimum(k.shape[2], window)
        return attention_flops(q.shape, keys, v.shape[3]) + 6 * (k.elements + v.elements)
