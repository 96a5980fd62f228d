"""A tiny language model as text, with places to put something else, and what is needed to run its graphs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

import irx.ops  # noqa: F401
from irx.analysis.reference import evaluate
from irx.ir.opdef import Array
from irx.ir.parser import parse
from irx.ir.program import Program
from irx.ir.types import KVType
from irx.ops.cache import KVArrays
from irx.passes.normalize.insert_cache import InsertCache
from irx.pipeline.base import Report
from tests.cases.running import context

_TEXT = """
program @tiny {
  size B in [1, 16]
  size S in [1, 64]
  weight $embed : f32[32, 16]
  weight $places : f32[64, 16]
  weight $bias : f32[64, 4]
  weight $q : f32[16, 16]
  weight $k : f32[8, 16]
  graph @forward(%ids: i64[B, S]INPUTS) -> (logits: f32[B, S, 32]) {
    %tokens = irx.embedding(%ids, $embed) : f32[B, S, 16]
POSITIONS
    %q0 = irx.linear(%x, $q) : f32[B, S, 16]
    %q1 = irx.reshape(%q0) {shape=[B, S, 4, 4]} : f32[B, S, 4, 4]
    %q = irx.permute(%q1) {order=[0, 2, 1, 3]} : f32[B, 4, S, 4]
    %k0 = irx.linear(%x, $k) : f32[B, S, 8]
    %k1 = irx.reshape(%k0) {shape=[B, S, 2, 4]} : f32[B, S, 2, 4]
    %k = irx.permute(%k1) {order=[0, 2, 1, 3]} : f32[B, 2, S, 4]
    %v = irx.neg(%k) : f32[B, 2, S, 4]
ATTENTION
    %o = irx.permute(%attended) {order=[0, 2, 1, 3]} : f32[B, S, 4, 4]
    %flat = irx.reshape(%o) {shape=[B, S, 16]} : f32[B, S, 16]
    %sum = irx.add(%x, %flat) : f32[B, S, 16]
BEHIND
    %n = irx.rms_norm(%h) {eps=1e-06} : f32[B, S, 16]
    %logits = irx.linear(%n, $embed) : f32[B, S, 32]
    return %logits
  }
}
"""
LOOKED_UP = """
    %i = irx.arange() {stop=S} : i64[S]
    %e = irx.embedding(%i, $places) : f32[S, 16]
    %x = irx.add(%tokens, %e) : f32[B, S, 16]
"""
CAUSAL = "    %attended = irx.attention(%q, %k, %v) {scale=0.5, causal=true} : f32[B, 4, S, 4]"
NOTHING = "    %h = irx.mul(%sum, 1.0) : f32[B, S, 16]"


def tiny(*, inputs: str = "", positions: str = LOOKED_UP, attention: str = CAUSAL, behind: str = NOTHING) -> Program:
    """The model with other inputs, positions (%tokens to %x), attention (%q, %k, %v to %attended) or %sum to %h."""
    text = _TEXT.replace("INPUTS", f", {inputs}" if inputs else "").replace("POSITIONS", positions)
    program = parse(text.replace("ATTENTION", attention).replace("BEHIND", behind))
    generator = np.random.default_rng(0)
    for entry in program.weights:
        array = generator.standard_normal([int(str(d)) for d in entry.weight.shape]).astype(np.float32)
        program.weights.bind(entry.weight.name, partial(np.asarray, array))
    return program


def cached(program: Program) -> Report:
    """Run insert-cache."""
    return InsertCache().run(program, context(program))


def run(program: Program, name: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The outputs of a graph by name; inputs it does not take are left out."""
    graph = program.graphs[name]
    given = {v.name: inputs[v.name] for v in graph.inputs}
    return dict(zip(graph.output_names, evaluate(graph, given, {}, program.weights), strict=True))


def stepwise(program: Program, ids: Array, chunks: list[int], given: Mapping[str, Any] | None = None) -> Array:
    """The logits of `ids` [B, S], computed in chunks: `prefill`, and `decode` where a chunk is one token."""
    prefill = program.graphs["prefill"]
    states = {v.name: KVArrays.empty(v.type, len(ids)) for v in prefill.inputs if isinstance(v.type, KVType)}
    parts, start = [], 0
    for size in chunks:
        pos = np.broadcast_to(np.arange(start, start + size), (len(ids), size))
        inputs = {**(given or {}), **states, program.meta["ids"]: ids[:, start : start + size], "pos": pos}
        found = run(program, "decode" if size == 1 else "prefill", inputs)
        states = {name: found[name] for name in states}
        parts.append(found[program.meta["logits"]])
        start += size
    return np.concatenate(parts, axis=1)
