"""Choosing, gathering and merging tokens of a sequence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from irx.ir.dims import Dim
from irx.ir.opdef import Array, OpDef, tensor_bytes
from irx.ir.types import TensorType, Type
from irx.ops.numerics import top_indices
from irx.ops.shape import Free
from irx.ops.shapes import need, need_float, need_integer, need_rank, need_same_dtype, need_shape, result_dtype


class TopkTokens(OpDef):
    """The `keep` tokens of the highest scores, ascending: scores [B, T] give i64[B, keep].

    The first `first` and the last `last` tokens are always among them; ties go to the lower index.
    """

    name = "topk_tokens"

    @staticmethod
    def infer(scores: TensorType, *, keep: Dim, first: int = 0, last: int = 1) -> TensorType:
        need_float(scores, "scores")
        need_rank(scores, 2, "scores")
        size = scores.shape[1]
        fits = not (isinstance(keep, int) and isinstance(size, int)) or keep <= size
        need(fits, f"{keep} of {size} tokens cannot be kept")
        need(not isinstance(keep, int) or first + last <= keep, f"{first} + {last} protected tokens exceed {keep}")
        return TensorType((scores.shape[0], keep), "i64")

    @staticmethod
    def reference(scores: Array, *, keep: int, first: int = 0, last: int = 1) -> Array:
        length = scores.shape[1]
        places = np.arange(length)
        ranked = np.where((places < first) | (places >= length - last), np.inf, scores)
        return np.sort(top_indices(ranked, keep), axis=1)

    @staticmethod
    def flops(scores: TensorType, *, keep: Dim, first: int = 0, last: int = 1) -> Dim:
        return scores.elements


class PoolScores(OpDef):
    """Scores [B, T] of tokens, each with its neighbours': the mean or the maximum of `width` scores around it.

    `width` is odd. Behind both ends there are zeros, which count as scores do.
    """

    name = "pool_scores"

    @staticmethod
    def infer(scores: TensorType, *, width: int, how: str = "avg") -> TensorType:
        need_float(scores, "scores")
        need_rank(scores, 2, "scores")
        need(width > 0 and width % 2 == 1, f"width must be odd and positive, not {width}")
        need(how in ("avg", "max"), f"how must be avg or max, not {how!r}")
        return scores

    @staticmethod
    def reference(scores: Array, *, width: int, how: str = "avg") -> Array:
        padded = np.pad(scores, ((0, 0), (width // 2, width // 2)))
        around = np.lib.stride_tricks.sliding_window_view(padded, width, axis=1)
        return np.asarray(around.mean(2) if how == "avg" else around.max(2)).astype(scores.dtype)

    @staticmethod
    def flops(scores: TensorType, *, width: int, how: str = "avg") -> Dim:
        return width * scores.elements


def _check_index(x: TensorType, index: TensorType) -> None:
    need(x.rank >= 2, f"x needs batch and token axes, not {x}")
    need_integer(index, "index")
    need_rank(index, 2, "index")
    need(index.shape[0] == x.shape[0], f"x {x} and index {index} differ in their batch")


def _aligned(index: Array, rank: int) -> Array:
    """An index [B, K] with as many axes as `rank`, for numpy's take_along_axis."""
    return np.reshape(index, (*np.shape(index), *(1,) * (rank - 2)))


class GatherTokens(Free):
    """Tokens of every row of the batch: x [B, S, ...], index i64[B, K] give [B, K, ...]."""

    name = "gather_tokens"

    @staticmethod
    def infer(x: TensorType, index: TensorType) -> TensorType:
        _check_index(x, index)
        return TensorType((*index.shape, *x.shape[2:]), result_dtype(x))

    @staticmethod
    def reference(x: Array, index: Array) -> Array:
        return np.take_along_axis(x, _aligned(index, x.ndim), axis=1)

    @classmethod
    def bytes(cls, operands: Sequence[Type | None], results: Sequence[Type]) -> Dim:
        """Only the tokens that stay are read."""
        tensors = [item for item in (operands[1], results[0], results[0]) if isinstance(item, TensorType)]
        return sum(map(tensor_bytes, tensors), start=0)


class ScatterTokens(Free):
    """x [B, S, ...] with the tokens index i64[B, K] replaced by source [B, K, ...]; indices of a row differ."""

    name = "scatter_tokens"

    @staticmethod
    def infer(x: TensorType, index: TensorType, source: TensorType) -> TensorType:
        _check_index(x, index)
        need_shape(source, (*index.shape, *x.shape[2:]), "source")
        need_same_dtype("x and source", x, source)
        return x

    @staticmethod
    def reference(x: Array, index: Array, source: Array) -> Array:
        result = np.array(x)
        np.put_along_axis(result, _aligned(index, x.ndim), source, axis=1)
        return result


class MergeTokens(OpDef):
    """Size-weighted means of merged tokens: x [B, S, D], sizes [B, S] give ([B, S - N, D], [B, S - N]).

    Token index_from[b, n] goes into token index_to[b, n] (both i64[B, N]; no token occurs in both). The tokens that
    stay keep their order; their sizes add up. A token of size 0, which is padding, weighs nothing: it takes over what
    is merged into it, and among themselves such tokens stay as they are. (Bolya et al. 2022, arXiv:2210.09461.)
    """

    name = "merge_tokens"

    @staticmethod
    def infer(
        x: TensorType, sizes: TensorType, index_from: TensorType, index_to: TensorType
    ) -> tuple[TensorType, TensorType]:
        need_rank(x, 3, "x")
        need_float(x, "x")
        need_shape(sizes, x.shape[:2], "sizes")
        _check_index(x, index_from)
        need(index_from == index_to, f"index_from {index_from} and index_to {index_to} must have one type")
        left = x.shape[1] - index_from.shape[1]
        return x.with_shape(x.shape[0], left, x.shape[2]), sizes.with_shape(sizes.shape[0], left)

    @staticmethod
    def reference(x: Array, sizes: Array, index_from: Array, index_to: Array) -> tuple[Array, Array]:
        batch = np.arange(len(x))[:, None]
        weighted, total = x * sizes[..., None], np.array(sizes)
        np.add.at(weighted, (batch, index_to), weighted[batch, index_from])
        np.add.at(total, (batch, index_to), sizes[batch, index_from])
        stays = np.ones(sizes.shape, bool)
        stays[batch, index_from] = False
        shape = (len(x), sizes.shape[1] - index_from.shape[1])
        merged = np.where(total[..., None] > 0, weighted / np.where(total > 0, total, 1)[..., None], x)[stays]
        return merged.reshape(*shape, x.shape[2]).astype(x.dtype), total[stays].reshape(shape)

    @staticmethod
    def flops(x: TensorType, sizes: TensorType, index_from: TensorType, index_to: TensorType) -> Dim:
        return 2 * x.elements + index_from.elements * x.shape[2]


class MatchTokens(OpDef):
    """Which tokens to merge: keys [B, G, S, D], sizes f32[B, S] give (index_from, index_to i64[B, N], slots i64[B, S]).

    Odd tokens may go, each into the even one whose key is most like its own by the cosine over all heads; the first
    `first` tokens take no part. Those N = `count` go for which likeness - alpha * received is largest, where `received`
    f32[B, S] is the attention that a token gets. Tokens of size 0, which is padding, go first, and nothing is
    merged into one while another is left. `slots` is where a token is found after `merge_tokens`. Ties go to the lower
    index.
    (Pairs: Bolya et al. 2022, arXiv:2210.09461; the score: Ju et al. 2023, Turbo, arXiv:2312.07408.)
    """

    name = "match_tokens"

    @staticmethod
    def infer(
        keys: TensorType,
        sizes: TensorType,
        received: TensorType | None = None,
        *,
        count: Dim,
        alpha: float = 0.0,
        first: int = 1,
    ) -> tuple[TensorType, TensorType, TensorType]:
        need_rank(keys, 4, "keys")
        need_float(keys, "keys")
        batch, _, length, _ = keys.shape
        need_shape(sizes, (batch, length), "sizes")
        if received is not None:
            need_shape(received, (batch, length), "received")
        need(first >= 0, f"first must not be negative: {first}")
        if isinstance(count, int) and isinstance(length, int):
            fits = count == 0 or (count <= len(range(first | 1, length, 2)) and first + first % 2 < length)
            need(fits, f"{count} of {length} tokens cannot be merged where the first {first} take no part")
        index = TensorType((batch, count), "i64")
        return index, index, TensorType((batch, length), "i64")

    @staticmethod
    def reference(
        keys: Array,
        sizes: Array,
        received: Array | None = None,
        *,
        count: int,
        alpha: float = 0.0,
        first: int = 1,
    ) -> tuple[Array, Array, Array]:
        batch, _, length, _ = keys.shape
        flat = np.moveaxis(np.asarray(keys, np.float64), 1, 2).reshape(batch, length, -1)
        unit = flat / np.maximum(np.linalg.norm(flat, axis=2, keepdims=True), _TINY)
        sources, targets = np.arange(first | 1, length, 2), np.arange(first + first % 2, length, 2)
        if count == 0:
            none = np.zeros((batch, 0), np.int64)
            return none, none, np.broadcast_to(np.arange(length), (batch, length)).copy()
        like = unit[:, sources] @ np.swapaxes(unit[:, targets], 1, 2)
        like = np.where(sizes[:, None, targets] > 0, like, _WORST)
        score = like.max(2) - (0 if received is None else alpha * received[:, sources])
        chosen = np.sort(top_indices(np.where(sizes[:, sources] > 0, score, np.inf), count), axis=1)
        into = targets[np.take_along_axis(like.argmax(2), chosen, 1)]
        gone = sources[chosen]
        return gone, into, _slots(gone, into, length)

    @staticmethod
    def flops(
        keys: TensorType,
        sizes: TensorType,
        received: TensorType | None = None,
        *,
        count: Dim,
        alpha: float = 0.0,
        first: int = 1,
    ) -> Dim:
        batch, heads, length, channels = keys.shape
        half = (length + 1) // 2
        return 2 * batch * heads * channels * half * half + 3 * keys.elements


_WORST = -2.0  # below every cosine
_TINY = 1e-12


def _slots(gone: Array, into: Array, length: int) -> Array:
    """i64[B, S]: the place of every token when the tokens `gone` [B, N] are merged into those of `into` [B, N]."""
    stays = np.ones((len(gone), length), np.int64)
    np.put_along_axis(stays, gone, 0, axis=1)
    places = np.cumsum(stays, axis=1) - 1
    np.put_along_axis(places, gone, np.take_along_axis(places, into, axis=1), axis=1)
    return places
