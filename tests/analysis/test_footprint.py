"""What a program has to hold, counted by hand for small states."""

from __future__ import annotations

import pytest

from irx.analysis.footprint import footprint, state_bytes
from irx.ir.parser import parse
from irx.ir.types import KVType

PLAIN = KVType(2, 2, 8, 8, "f32")
PROGRAM = """size B in [1, 4]
weight $w : f32[16, 16]
weight $unused : f32[99]
weight $q : q8_0[4, 32]
graph @prefill(%q: f32[B, 2, 1, 8], %pos: i64[B, 1], %kv: kv<heads=2, dim=8, dense, f32>) -> (y: f32[B, 2, 1, 8]) {
  %y = irx.kv_attention(%q, %kv, %pos) {scale=0.5} : f32[B, 2, 1, 8]
  return %y
}
graph @forward(%x: f32[B, 16]) -> (y: f32[B, 16]) {
  %y = irx.linear(%x, $w)
  return %y
}
"""


@pytest.mark.parametrize(
    ("kv", "bytes"),
    [
        (PLAIN, 100 * 32 * 4),
        (KVType(2, 2, 8, 8, "f32", window=10, sinks=4), 14 * 32 * 4),
        (KVType(2, 2, 8, 8, "f32", window=200), 100 * 32 * 4),
        (KVType(2, 2, 8, 8, "f32", kept=0.2), 20 * 32 * 4),
        (KVType(2, 2, 8, 8, "f32", code="token4"), 100 * 4 * (4 + 4)),
        (KVType(2, 2, 32, 32, "f32", code="kivi2-32-64"), 36 * 4 * (8 + 4) + 64 * 128 * 4),
    ],
)
def test_states_hold_what_their_types_say(kv: KVType, bytes: int) -> None:
    assert state_bytes(kv, 100) == bytes


def test_weights_that_nothing_reads_take_no_room() -> None:
    assert footprint(parse(PROGRAM), 10) == 16 * 16 * 4 + 10 * 32 * 4
