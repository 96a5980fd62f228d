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
    stay keep their order; their sizes add up. (Bolya et al. 2022, arXiv:2210.09461.)
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
        merged = (weighted / total[..., None])[stays]
        return merged.reshape(*shape, x.shape[2]).astype(x.dtype), total[stays].reshape(shape)

    @staticmethod
    def flops(x: TensorType, sizes: TensorType, index_from: TensorType, index_to: TensorType) -> Dim:
        return 2 * x.elements + index_from.elements * x.shape[2]
