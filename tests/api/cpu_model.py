"""A small language model in text, for tests of a whole compilation for the CPU: few kernels, all kinds of regions."""

from __future__ import annotations

import irx
from irx.analysis.random_weights import bind_random_weights
from irx.ir.program import Program

LANGUAGE_MODEL = """\
program @small {
  meta {"inputs": [{"name": "ids", "role": "ids"}], "causal": true, "max_length": 96}
  size B in [1, 16]
  size S in [1, 96]
  weight $table : f32[64, 32]
  weight $places : f32[96, 32]
  weight $norm : f32[32]
  weight $q : f32[32, 32]
  weight $k : f32[16, 32]
  weight $v : f32[16, 32]
  weight $o : f32[32, 32]
  weight $up : f32[48, 32]
  weight $down : f32[32, 48]
  graph @forward(%ids: i64[B, S]) -> (logits: f32[B, S, 64]) {
    %x = irx.embedding(%ids, $table)  // model.embed
    %n = irx.rms_norm(%x, $norm) {eps=1e-05}
    %q = irx.linear(%n, $q)
    %k = irx.linear(%n, $k)
    %v = irx.linear(%n, $v)
    %qs = irx.reshape(%q) {shape=[B, S, 4, 8]}
    %ks = irx.reshape(%k) {shape=[B, S, 2, 8]}
    %vs = irx.reshape(%v) {shape=[B, S, 2, 8]}
    %qh = irx.permute(%qs) {order=[0, 2, 1, 3]}
    %kh = irx.permute(%ks) {order=[0, 2, 1, 3]}
    %vh = irx.permute(%vs) {order=[0, 2, 1, 3]}
    %a = irx.attention(%qh, %kh, %vh) {scale=0.35, causal=true}  // model.layers.0.attention
    %ap = irx.permute(%a) {order=[0, 2, 1, 3]}
    %h = irx.reshape(%ap) {shape=[B, S, 32]}
    %m = irx.linear(%h, $o)
    %y = irx.add(%x, %m)
    %u = irx.linear(%y, $up)
    %s = irx.silu(%u)
    %d = irx.linear(%s, $down)
    %z = irx.add(%y, %d)
    %logits = irx.linear(%z, $table)  // head
    return %logits
  }
}
"""


def program(seed: int = 0) -> Program:
    """The model with random weights; another seed is another model with the same kernels."""
    found = irx.parse(LANGUAGE_MODEL)
    bind_random_weights(found.weights, seed)
    return found
