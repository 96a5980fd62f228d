"""Small programs in text form that the tests of the command share."""

import irx.ops  # noqa: F401  (declares the operations that they name)

NORM = """\
weight $w : f32[8]
weight $p : f32[16, 8]
graph @forward(%x: f32[B, S, 8]) -> (y: f32[B, S, 16]) {
  %square = irx.pow(%x, 2)  // model.norm @ net.py:12
  %mean = irx.mean(%square) {axes=[2], keepdims=true}
  %shifted = irx.add(%mean, 1e-05)
  %inverse = irx.rsqrt(%shifted)
  %normal = irx.mul(%x, %inverse)
  %scaled = irx.mul($w, %normal)
  %y = irx.linear(%scaled, $p)
  return %y
}
"""

LANGUAGE_MODEL = """\
program @tiny {
  meta {"inputs": [{"name": "ids", "role": "ids"}], "causal": true, "max_length": 64}
  size B in [1, 8]
  size S in [1, 64]
  weight $table : f32[32, 16]
  weight $q : f32[16, 16]
  weight $k : f32[8, 16]
  weight $v : f32[8, 16]
  graph @forward(%ids: i64[B, S]) -> (logits: f32[B, S, 32]) {
    %x = irx.embedding(%ids, $table)
    %q = irx.linear(%x, $q)
    %k = irx.linear(%x, $k)
    %v = irx.linear(%x, $v)
    %qs = irx.reshape(%q) {shape=[B, S, 4, 4]}
    %ks = irx.reshape(%k) {shape=[B, S, 2, 4]}
    %vs = irx.reshape(%v) {shape=[B, S, 2, 4]}
    %qh = irx.permute(%qs) {order=[0, 2, 1, 3]}
    %kh = irx.permute(%ks) {order=[0, 2, 1, 3]}
    %vh = irx.permute(%vs) {order=[0, 2, 1, 3]}
    %a = irx.attention(%qh, %kh, %vh) {scale=0.5, causal=true}  // model.layers.0.attention
    %ap = irx.permute(%a) {order=[0, 2, 1, 3]}
    %h = irx.reshape(%ap) {shape=[B, S, 16]}
    %y = irx.add(%x, %h)
    %logits = irx.linear(%y, $table)
    return %logits
  }
}
"""

WITH_CALL = """\
graph @forward(%x: f32[B, 8]) -> (y: f32[B, 8]) {
  %y = torch.call(%x) {target="aten.erf.default", args=[#0], results=[f32[B, 8]]}  // model.odd @ net.py:7
  return %y
}
"""
