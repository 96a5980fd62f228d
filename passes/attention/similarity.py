"""How alike layers attend: the mean cosine between the rows of their attention probabilities, on the user's data.

    %p1 = irx.attention(%q1, %k1, %identity) {...} : f32[B, H, S, T]         // the values 1 at each key give p itself
    %p2 = irx.attention(%q2, %k2, %identity) {...} : f32[B, H, S, T]
    %c  = mean over rows, heads of  (p1 . p2) / sqrt((p1 . p1) (p2 . p2))    : f32[B]

The nodes are added to a copy of the program, so masks, windows, biases and sinks count as they do in the layer itself,
and the backend computes them; only the means leave it. (EchoAtt, Rajabzadeh et al. 2024, arXiv:2409.14595.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from irx.analysis.calibration import Calibration
from irx.ir.graph import Builder, Graph, Value
from irx.ir.program import Program
from irx.passes.attention.sites import AttentionSite, attention_sites, unlike

Similarities: TypeAlias = dict[tuple[int, int], float]
"""The mean cosine by the indices of a leader and a later layer."""

_TINY = 1e-12


def similarities(program: Program, data: Calibration, indices: Sequence[int], distance: int) -> Similarities:
    """The cosines of all pairs of layers in `indices` that are at most `distance` apart and alike in their shapes."""
    copy = program.clone()
    sites, _ = attention_sites(copy)
    graph = copy.graphs["forward"]
    near = [(i, j) for i in indices for j in indices if i < j <= i + distance]
    pairs = [pair for pair in near if not unlike(sites[pair[0]], sites[pair[1]])]
    if not pairs:
        return {}
    rows = {index: _probabilities(graph, sites[index]) for index in sorted({i for pair in pairs for i in pair})}
    means = [_cosine(Builder(graph), rows[i], rows[j]) for i, j in pairs]
    sums, count = [0.0] * len(pairs), 0
    for found in data.values(copy, means):
        count += len(found[0])
        sums = [total + float(array.sum()) for total, array in zip(sums, found, strict=True)]
    return {pair: total / max(count, 1) for pair, total in zip(pairs, sums, strict=True)}


def _probabilities(graph: Graph, site: AttentionSite) -> Value:
    """f32[B, H, S, T]: the layer's attention with one-hot values."""
    b = Builder(graph)
    k = site.operand("k")
    keys = b("arange", stop=k.shape[2], dtype="i64")
    same = b("eq", b("reshape", keys, shape=(k.shape[2], 1)), b("reshape", keys, shape=(1, k.shape[2])))
    hot = b("reshape", b("cast", same, dtype=k.dtype), shape=(1, 1, k.shape[2], k.shape[2]))
    values = b("expand", hot, shape=(*k.shape[:3], k.shape[2]))
    q, _, _, *extras = site.node.inputs
    p = b("attention", q, k, values, *extras, **site.node.attrs)
    return p if p.dtype == "f32" else b("cast", p, dtype="f32")


def _cosine(b: Builder, left: Value, right: Value) -> Value:
    """f32[B]: the mean over heads and rows."""
    product, squares = _dot(b, left, right), b("mul", _dot(b, left, left), _dot(b, right, right))
    return b("mean", b("div", product, b("sqrt", b("maximum", squares, _TINY))), axes=(1, 2))


def _dot(b: Builder, left: Value, right: Value) -> Value:
    return b("sum", b("mul", left, right), axes=(3,))
