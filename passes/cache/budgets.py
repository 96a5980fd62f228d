"""How many tokens each layer keeps, so that the same part of its attention stays everywhere (PrefixKV).

Of every layer the attention that keys get, summed over queries and heads, is sorted; the shortest prefix of the sorted
keys that holds a part theta of it is what the layer would need. Theta is the one at which the layers together need as
much as they are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np

from irx.analysis.calibration import FORWARD, Calibration
from irx.errors import IRXError
from irx.ir.graph import Loc, Node, Value
from irx.ir.opdef import Array
from irx.ir.program import Program

BATCHES = 4  # of the data whose attention is looked at
STEPS = 40  # of the search for theta
LEAST = 0.01  # of the tokens, which every layer keeps


class NotMeasured(IRXError):
    """A layer's attention cannot be found in `forward`: the reason, and where."""

    def __init__(self, reason: str, loc: Loc) -> None:
        super().__init__(reason)
        self.reason = reason
        self.loc = loc


def prefix_shares(program: Program, data: Calibration, readers: Sequence[Node], mean: float) -> list[float]:
    """For the layers of attention nodes `readers` of `prefill`, shares of the tokens whose mean is `mean`, over it.

    Raises NotMeasured where a layer has no attention in `forward`.
    """
    nodes = [_plain(program, reader) for reader in readers]
    wanted = [value for node in nodes for value in node.inputs[:2] if value is not None]
    curves = _curves(data, program, wanted, nodes)
    shares = shares_of(curves, mean)
    return [share / mean for share in shares]


def shares_of(curves: Sequence[Array], mean: float) -> list[float]:
    """Shares of keys, each the shortest prefix of its curve that reaches one theta, with the mean that is given.

    A curve is the part of the attention that the best keys get, ascending to 1.
    """
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        theta = (low + high) / 2
        low, high = (theta, high) if float(np.mean(_needed(curves, theta))) <= mean else (low, theta)
    found = np.clip(_needed(curves, low), LEAST, 1.0)
    return [float(share) for share in _scaled(found, mean)]


def curve_of(received: Array) -> Array:
    """The cumulated part of the attention of keys, the best first."""
    best = np.sort(received)[::-1]
    return np.asarray(np.cumsum(best) / best.sum())


def _needed(curves: Sequence[Array], theta: float) -> Array:
    return np.array([(int(np.searchsorted(curve, theta)) + 1) / len(curve) if theta > 0 else 0 for curve in curves])


def _scaled(shares: Array, mean: float) -> Array:
    """Shares of at most 1 with exactly that mean, in their proportions as far as that allows."""
    for _ in range(len(shares)):
        open_ = shares < 1
        missing = mean * len(shares) - shares.sum()
        if abs(missing) < 1e-9 or not open_.any():
            break
        shares = np.where(open_, np.minimum(1, shares * (1 + missing / shares[open_].sum())), shares)
    return shares


def _plain(program: Program, reader: Node) -> Node:
    graph = program.graphs.get(FORWARD)
    here = [] if graph is None else [n for n in graph.nodes if n.op.name == "attention"]
    found = [node for node in here if node.loc.module == reader.loc.module]
    if len(found) != 1:
        raise NotMeasured("its attention has no one counterpart in @forward, on which budgets are measured", reader.loc)
    return found[0]


def _curves(data: Calibration, program: Program, wanted: Sequence[Value], nodes: Sequence[Node]) -> list[Array]:
    """Of every layer the mean curve over the first rows of some batches."""
    found: list[list[Array]] = [[] for _ in nodes]
    for arrays in islice(data.values(program, wanted), BATCHES):
        for i, node in enumerate(nodes):
            q, k = arrays[2 * i][0], arrays[2 * i + 1][0]
            found[i].append(curve_of(_received(q, k, float(str(node.attr("scale"))))))
    shortest = min(len(curve) for curves in found for curve in curves)
    points = np.linspace(0, 1, shortest + 1)[1:]
    return [np.mean([_resampled(curve, points) for curve in curves], axis=0) for curves in found]


def _resampled(curve: Array, points: Array) -> Array:
    return np.asarray(np.interp(points, np.linspace(0, 1, len(curve) + 1), np.concatenate([[0.0], curve])))


def _received(q: Array, k: Array, scale: float) -> Array:
    """The causal attention that each key gets from all queries and heads: [T], for q [H, S, D] and k [G, S, D]."""
    shared = len(q) // len(k)
    length = k.shape[1]
    hidden = np.triu(np.ones((length, length), bool), 1)
    total = np.zeros(length)
    for h, rows in enumerate(q):
        logits = np.where(hidden, -np.inf, scale * (rows.astype(np.float32) @ k[h // shared].astype(np.float32).T))
        p = np.exp(logits - logits.max(-1, keepdims=True))
        total += (p / p.sum(-1, keepdims=True)).sum(0)
    return total
