"""Two small models as text, a decoder with its cache and an encoder: every lossy pass finds something to do on one."""

from __future__ import annotations

import irx.ops  # noqa: F401  declares the ops that texts name
from irx.analysis.random_weights import bind_random_weights
from irx.ir.parser import parse
from irx.ir.program import Program
from irx.passes.normalize.insert_cache import InsertCache
from irx.passes.normalize.slice_rows import SliceRows
from tests.cases.running import context

WIDTH, HEADS, GROUPS, HEAD, INNER, WORDS = 32, 4, 2, 8, 64, 40

_LAYER = """
  %nI = irx.rms_norm(%xI, $norm) {eps=1e-06}
  %qaI = irx.linear(%nI, $qI)
  %kaI = irx.linear(%nI, $kI)
  %vaI = irx.linear(%nI, $vI)
  %qbI = irx.reshape(%qaI) {shape=[B, S, 4, 8]}
  %kbI = irx.reshape(%kaI) {shape=[B, S, KEYS, 8]}
  %vbI = irx.reshape(%vaI) {shape=[B, S, KEYS, 8]}
  %qcI = irx.permute(%qbI) {order=[0, 2, 1, 3]}
  %kcI = irx.permute(%kbI) {order=[0, 2, 1, 3]}
  %vI = irx.permute(%vbI) {order=[0, 2, 1, 3]}
ATTENTION
  %oaI = irx.permute(%aI) {order=[0, 2, 1, 3]}
  %obI = irx.reshape(%oaI) {shape=[B, S, 32]}
  %ocI = irx.linear(%obI, $oI)
  %yI = irx.add(%xI, %ocI)
  %mI = irx.rms_norm(%yI, $norm) {eps=1e-06}
  %gI = irx.linear(%mI, $gI)
  %uI = irx.linear(%mI, $uI)
  %sI = irx.swiglu(%gI, %uI)
  %dI = irx.linear(%sI, $dI)
  %xJ = irx.add(%yI, %dI)
"""
_CAUSAL = """  %qI = irx.rope(%qcI, %places, $angles)
  %kI = irx.rope(%kcI, %places, $angles)
  %aI = irx.attention(%qI, %kI, %vI) {scale=0.35, causal=true}  // layers.I.attention"""
_BOTH_WAYS = "  %aI = irx.attention(%qcI, %kcI, %vI, %seen) {scale=0.35}  // layers.I.attention"
_SHAPES = {"q": "32, 32", "k": "KEYS, 32", "v": "KEYS, 32", "o": "32, 32", "g": "64, 32", "u": "64, 32", "d": "32, 64"}
_TEXT = """
program @small {
  size B in [1, 16]
  size S in [1, 64]
  weight $embed : f32[40, 32]
  weight $norm : f32[32]
  weight $angles : f32[4]
WEIGHTS
  graph @forward(%ids: i64[B, S]MASK) -> (OUT) {
    %x0 = irx.embedding(%ids, $embed)
PLACES
LAYERS
    %n = irx.rms_norm(%xLAST, $norm) {eps=1e-06}
RESULT
  }
}
"""


def decoder(layers: int = 5) -> Program:
    """A causal model with rotary positions, grouped heads and gated MLPs, with `forward`, `prefill` and `decode`."""
    text = _model(layers, _CAUSAL, GROUPS)
    text = text.replace("MASK", "").replace("OUT", "logits: f32[B, S, 40]")
    places = "    %count = irx.arange() {stop=S}\n    %places = irx.reshape(%count) {shape=[1, S]}"
    result = "    %logits = irx.linear(%n, $embed)\n    return %logits"
    program = _bound(text.replace("PLACES", places).replace("RESULT", result))
    for one in (InsertCache(), SliceRows()):
        assert one.run(program, context(program)).sites
    return program


def encoder(layers: int = 5) -> Program:
    """An encoder with a mask of padding; it has no positions."""
    text = _model(layers, _BOTH_WAYS, HEADS)
    text = text.replace("MASK", ", %mask: bool[B, S]").replace("OUT", "states: f32[B, S, 32]")
    text = text.replace("PLACES", "    %seen = irx.reshape(%mask) {shape=[B, 1, 1, S]}")
    return _bound(text.replace("RESULT", "    return %n"))


def _model(layers: int, attention: str, keys: int) -> str:
    layer = _LAYER.replace("ATTENTION", attention).replace("KEYS", str(keys))
    body = "".join(_numbered(layer, i) for i in range(layers))
    shapes = {name: shape.replace("KEYS", str(keys * HEAD)) for name, shape in _SHAPES.items()}
    weights = "".join(f"  weight ${name}{i} : f32[{shape}]\n" for i in range(layers) for name, shape in shapes.items())
    return _TEXT.replace("WEIGHTS", weights).replace("LAYERS", body).replace("LAST", str(layers))


def _numbered(text: str, index: int) -> str:
    return text.replace("J =", f"{index + 1} =").replace("I", str(index))


def _bound(text: str) -> Program:
    program = parse(text)
    bind_random_weights(program.weights)
    return program
