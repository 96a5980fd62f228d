"""A small language model of several layers as text, with grouped heads and rotary positions, and data for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

import irx.ops  # noqa: F401
from irx.analysis.calibration import Calibration, Inputs
from irx.analysis.reference import evaluate
from irx.ir.opdef import Array
from irx.ir.parser import parse
from irx.ir.program import Program
from irx.pipeline.base import Context, Report
from tests.cases.running import context, find_passes
from tests.passes.normalize.tiny import cached

_LAYER = """
    %nI = irx.rms_norm(%xI, $norm) {eps=1e-06}
    %qaI = irx.linear(%nI, $qI)
    %qbI = irx.reshape(%qaI) {shape=[B, S, 4, 4]}
    %qcI = irx.permute(%qbI) {order=[0, 2, 1, 3]}
    %qI = irx.rope(%qcI, %p, $angles)
    %kaI = irx.linear(%nI, $kI)
    %kbI = irx.reshape(%kaI) {shape=[B, S, 2, 4]}
    %kcI = irx.permute(%kbI) {order=[0, 2, 1, 3]}
    %kI = irx.rope(%kcI, %p, $angles)
    %vaI = irx.linear(%nI, $vI)
    %vbI = irx.reshape(%vaI) {shape=[B, S, 2, 4]}
    %vI = irx.permute(%vbI) {order=[0, 2, 1, 3]}
    %aI = irx.attention(%qI, %kI, %vI) {scale=0.5, causal=trueMORE}  // layers.I.attention
    %oaI = irx.permute(%aI) {order=[0, 2, 1, 3]}
    %obI = irx.reshape(%oaI) {shape=[B, S, 16]}
    %ocI = irx.linear(%obI, $oI)
    %yI = irx.add(%xI, %ocI)
    %mI = irx.rms_norm(%yI, $norm) {eps=1e-06}
    %uI = irx.linear(%mI, $uI)
    %sI = irx.silu(%uI)
    %dI = irx.linear(%sI, $dI)
    %xJ = irx.add(%yI, %dI)
"""
_WEIGHTS = "".join(
    f"  weight ${name}I : f32[{shape}]\n"
    for name, shape in {"q": "16, 16", "k": "8, 16", "v": "8, 16", "o": "16, 16", "u": "24, 16", "d": "16, 24"}.items()
)
_TEXT = """
program @layers {
  size B in [1, 16]
  size S in [1, 64]
  weight $embed : f32[32, 16]
  weight $norm : f32[16]
  weight $angles : f32[2]
WEIGHTS
  graph @forward(%ids: i64[B, S]) -> (logits: f32[B, S, 32]) {
    %x0 = irx.embedding(%ids, $embed)
    %i = irx.arange() {stop=S}
    %p = irx.reshape(%i) {shape=[1, S]}
LAYERS
    %n = irx.rms_norm(%xLAST, $norm) {eps=1e-06}
    %logits = irx.linear(%n, $embed)
    return %logits
  }
}
"""


def layered(count: int, windows: Mapping[int, int] | None = None) -> Program:
    """A model of `count` layers with a cache, of which some attend to a window only."""
    more = {index: f", window={size}" for index, size in (windows or {}).items()}
    layers = "".join(_numbered(_LAYER.replace("MORE", more.get(i, "")), i) for i in range(count))
    weights = "".join(_numbered(_WEIGHTS, i) for i in range(count))
    text = _TEXT.replace("WEIGHTS", weights).replace("LAYERS", layers).replace("LAST", str(count))
    program = parse(text)
    generator = np.random.default_rng(0)
    for entry in program.weights:
        array = generator.standard_normal([int(str(d)) for d in entry.weight.shape]) * 0.4
        program.weights.bind(entry.weight.name, partial(np.asarray, array.astype(np.float32)))
    assert cached(program).sites
    return program


def _numbered(text: str, index: int) -> str:
    return text.replace("J =", f"{index + 1} =").replace("I", str(index))


def tokens(rows: int, length: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).integers(0, 32, (rows, length))


def calibration(batches: int = 4, rows: int = 4, length: int = 12) -> Calibration:
    """Random tokens, run by the oracle."""
    return Calibration([{"ids": tokens(rows, length, seed)} for seed in range(batches)], _prepare)


def _prepare(program: Program) -> Callable[[Inputs], list[Array]]:
    def call(inputs: Inputs) -> list[Array]:
        batch, length = np.shape(inputs["ids"])
        return evaluate(program.graphs["forward"], inputs, {"B": batch, "S": length}, program.weights)

    return call


def applied(program: Program, text: str, data: Calibration | None = None) -> tuple[Program, Report]:
    """A copy after one pass, and its report."""
    copy = program.clone()
    ctx = prepared(copy, data)
    report = Report()
    for one in find_passes(text):
        report.add(one.run(copy, ctx))
    return copy, report


def prepared(program: Program, data: Calibration | None = None, captured: Program | None = None) -> Context:
    """A context with data and what the program was before."""
    ctx = context(program)
    ctx.calibration, ctx.captured = data, captured
    return ctx
