"""Do `prefill` and `decode` compute what `forward` computes? Both are evaluated and compared, token by token.

A small program is compared as a whole: two rows of tokens, the second one padded on the left, a prefill of some of
them and single steps for the rest. In a large one every distinct attention site is compared alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from irx.analysis.inputs import random_inputs
from irx.analysis.reference import resolve
from irx.analysis.structure import extract
from irx.errors import IRXError, NoReference, UnboundWeight
from irx.ir.dims import Range
from irx.ir.graph import Graph, Value, Weight
from irx.ir.opdef import Array, Tolerance
from irx.ir.types import KVType, TensorType
from irx.ir.weights import Weights
from irx.ops.cache import KVArrays
from irx.passes.normalize.caching.frontier import Frontier
from irx.passes.normalize.caching.rebuild import CachedSite
from irx.passes.normalize.caching.roles import Roles
from irx.rewrite.check import Evaluate, difference, small_sizes

_MOST_FLOPS = 3e8
_BATCH, _TOKENS, _FIRST = 2, 7, 4
_NARROW = 3  # the window to check with where a model's own is wider than the few tokens here


@dataclass(frozen=True)
class CacheCheck:
    """Compares one conversion. `forward` still takes the decoder's masks, which are ones here."""

    evaluate: Evaluate
    weights: Weights
    sizes: Mapping[str, Range]
    roles: Roles
    forward: Graph
    stored: Graph | None  # forward with the tables that prefill and decode read, where there are any
    encode: Graph | None
    prefill: Graph
    decode: Graph

    def whole(self, longest: int) -> float | None:
        """max|cached - forward| / max|forward| of the logits; infinite where something cannot be evaluated.

        Rounding of new tables to their dtype counts only where it exceeds the tolerance of attention. None where the
        program is too large, too short, needs torch that is not there, or was read without its weights.
        """
        tokens = min(_TOKENS, longest)
        sizes = {**small_sizes(self.sizes), str(self.roles.batch): _BATCH, str(self.roles.length): tokens}
        if tokens < _FIRST or not _affordable(self.forward, sizes):
            return None
        try:
            return self._compare(sizes)
        except (NoReference, UnboundWeight):
            return None
        except (IRXError, ArithmeticError, LookupError, ValueError):
            return float("inf")

    def _compare(self, sizes: Mapping[str, int]) -> float:
        given = _without_padding(random_inputs(self.forward, sizes), self.roles)
        captured = self._run(self.forward, given, sizes)[self.roles.logits]
        expected = self._run(self.stored, given, sizes)[self.roles.logits] if self.stored else captured
        if difference(expected, captured) > Tolerance().of(self.prefill.outputs[0].dtype):
            return difference(expected, captured)
        encoded = self._run(self.encode, given, sizes) if self.encode else {}
        states = {v.name: KVArrays.empty(v.type, _BATCH) for v in self.prefill.inputs if isinstance(v.type, KVType)}
        tokens = given[self.roles.tokens.name]

        def rows(graph: Graph, pos: Array, states: Mapping[str, Any]) -> tuple[Array, Mapping[str, Any]]:
            chosen = np.stack([row[np.maximum(p, 0)] for row, p in zip(tokens, pos, strict=True)])
            inputs = {**encoded, **states, self.roles.tokens.name: chosen, "pos": pos}
            found = self._run(graph, inputs, {**sizes, str(self.roles.length): pos.shape[1]})
            return found[self.roles.logits], {name: found[name] for name in states}

        return _largest_error(expected, self.prefill, self.decode, rows, states)

    def _run(self, graph: Graph, inputs: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
        names: dict[Value, str] = {v: f"input_{i}" for i, v in enumerate(graph.inputs)}
        part = extract(graph.outputs, (), names)
        known: dict[str, Any] = {names[v]: inputs[v.name] for v in graph.inputs if v.name in inputs}
        known |= {name: self.weights.array(v) for v, name in names.items() if isinstance(v, Weight)}
        results = self.evaluate(part, {v.name: known[v.name] for v in part.inputs}, sizes)
        return dict(zip(graph.output_names, results, strict=True))


def _affordable(graph: Graph, sizes: Mapping[str, int]) -> bool:
    """True where one evaluation takes few operations. Sizes are put in first: sums of expressions are slow."""
    flops = 0
    for node in graph.nodes:
        operands = [resolve(v.type, sizes) if v is not None else None for v in node.inputs]
        attrs = {name: resolve(attr, sizes) for name, attr in node.attrs.items()}
        flops += int(str(node.op.flops(*operands, **attrs)))
        if flops > _MOST_FLOPS:
            return False
    return True


def _without_padding(inputs: Mapping[str, Any], roles: Roles) -> dict[str, Any]:
    """Masks of ones, as nothing is padded in `forward`; the encoder's hide one token of the second row."""
    made = dict(inputs)
    for value in (*roles.masks, *roles.encoder):
        if value in roles.masks or value.name.endswith("mask"):
            made[value.name] = np.ones_like(made[value.name])
            if value not in roles.masks:
                made[value.name][-1, ..., -1] = 0
    for padding in roles.padding:
        ids = made[roles.tokens.name]
        made[roles.tokens.name] = np.where(ids == padding, padding - 1 if padding else padding + 1, ids)
    for value in roles.positions:
        made[value.name] = np.broadcast_to(np.arange(np.shape(made[value.name])[-1]), np.shape(made[value.name]))
    return made


def _largest_error(
    expected: Array,
    prefill: Graph,
    decode: Graph,
    rows: Callable[[Graph, Array, Mapping[str, Any]], tuple[Array, Mapping[str, Any]]],
    states: Mapping[str, Any],
) -> float:
    """The error of a ragged prefill and of single steps behind it, against rows `expected` [B, S, ...]."""
    total = expected.shape[1]
    first = np.stack([np.arange(_FIRST), np.arange(-1, _FIRST - 1)])
    error = 0.0
    for start in range(_FIRST - 1, total):
        pos = first if start == _FIRST - 1 else np.array([[start], [start - 1]])
        found, states = rows(prefill if start == _FIRST - 1 else decode, pos, states)
        for b, s in zip(*np.nonzero(pos >= 0), strict=True):
            error = max(error, difference(found[b, s], expected[b, pos[b, s]]))
    return error


def site_error(site: CachedSite, frontier: Frontier, weights: Weights, evaluate: Evaluate) -> float:
    """The error of one attention site alone, on random queries, keys and values. A wide window is narrowed for it."""
    node = site.node
    sizes = {**frontier.bindings(node.output, _TOKENS), str(frontier.batch): _BATCH}
    forward, cached = _site_graphs(site, frontier)
    inputs = random_inputs(forward, sizes)
    if "bias" in inputs:  # as it is stored now; that it is the same was found when the table was made
        inputs["bias"] = np.zeros_like(inputs["bias"]) if site.table is None else _distances(weights.array(site.table))
    (expected,) = evaluate(forward, inputs, sizes)
    fixed = {} if site.table is None else {"table": weights.array(site.table)}
    fixed |= {"sinks": inputs["sinks"]} if "sinks" in inputs else {}
    (kv,) = (v for v in cached.inputs if isinstance(v.type, KVType))

    def rows(graph: Graph, pos: Array, states: Mapping[str, Any]) -> tuple[Array, Mapping[str, Any]]:
        chosen = {name: _chosen(inputs[name], pos) for name in ("q", "k", "v")}
        bindings = {**sizes, str(frontier.length): pos.shape[1]}
        out, state = evaluate(graph, {**chosen, **fixed, **states, "pos": pos}, bindings)
        return np.moveaxis(out, 2, 1), {kv.name: state}

    empty = {kv.name: KVArrays.empty(cast(KVType, kv.type), _BATCH)}
    return _largest_error(np.moveaxis(expected, 2, 1), cached, cached, rows, empty)


def _distances(table: Array) -> Array:
    """The bias [1, H, S, S] of a table of distances [H, L]."""
    places = np.arange(_TOKENS)
    return np.asarray(table[:, np.clip(places[:, None] - places, 0, table.shape[1] - 1)][None])


def _chosen(x: Array, pos: Array) -> Array:
    """The tokens of x [B, H, S, D] at positions [B, K]; anything for padding."""
    return np.asarray(np.take_along_axis(x, np.maximum(pos, 0)[:, None, :, None], axis=2))


def _site_graphs(site: CachedSite, frontier: Frontier) -> tuple[Graph, Graph]:
    """One attention site, without and with a cache."""
    node = site.node
    window = node.attr("window")
    attrs: dict[str, Any] = {name: node.attr(name) for name in ("scale", "softcap")}
    attrs["window"] = min(window, _NARROW) if isinstance(window, int) else None
    forward, cached = Graph("site"), Graph("site")
    given = dict(zip(("q", "k", "v", "mask", "bias", "sinks"), node.inputs, strict=False))
    plain = {name: forward.add_input(name, v.type) for name, v in given.items() if v is not None and name != "bias"}
    if given.get("bias") is not None:
        heads, length = node.output.shape[1], frontier.length
        plain["bias"] = forward.add_input("bias", TensorType((1, heads, length, length), "f32"))
    operands = [plain.get(name) for name in given]
    forward.set_outputs({"out": forward.add("attention", operands, {**attrs, "causal": True}).output})
    q, k, v = (cached.add_input(name, plain[name].type) for name in ("q", "k", "v"))
    pos = cached.add_input("pos", TensorType((frontier.batch, frontier.length), "i64"))
    table = cached.add_input("table", site.table.type) if site.table is not None else None
    sinks = cached.add_input("sinks", plain["sinks"].type) if "sinks" in plain else None
    state = cached.add_input("kv", site.type)
    kv = cached.add("kv_append", [state, k, v, pos]).output
    out = cached.add("kv_attention", [q, kv, pos, table, sinks], attrs).output
    cached.set_outputs({"out": out, "kv": kv})
    return forward, cached
