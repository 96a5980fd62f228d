"""Sliced, factored and mixed matrices on the CPU's own kernels, against torch."""

from __future__ import annotations

import pytest
import torch

import irx
from irx.analysis.random_weights import bind_random_weights
from irx.ir.parser import parse
from irx.ir.program import Program
from tests.cases.running import find_passes
from tests.passes.weights.calibrating import ids, run_calibrated

pytest.importorskip("tvm", reason="the cpu extra is not installed")

# One network of each kind of matrix: what takes time here is compiling kernels.
TEXT = """
size B in [1, 16]
weight $table : f32[50, 32]
weight $norm : f32[32]
weight $gate : f32[96, 32]
weight $up : f32[96, 32]
weight $bias : f32[96]
weight $down : f32[32, 96]
graph @forward(%ids: i64[B, 5]) -> (y: f32[B, 5, 32]) {
  %x = irx.embedding(%ids, $table)
  %n = irx.rms_norm(%x, $norm) {eps=1e-5}
  %g = irx.linear(%n, $gate)
  %u = irx.linear(%n, $up, $bias)
  %h = irx.swiglu(%g, %u)
  %d = irx.linear(%h, $down)
  %y = irx.add(%x, %d)
  return %y
}
"""


def model() -> Program:
    program = parse(TEXT)
    bind_random_weights(program.weights)
    return program


@pytest.mark.parametrize(
    "text",
    [
        "slice-ffn{keep=0.667, multiple=16}",
        "quantize-weights{skip=none} | slice-ffn{keep=0.667, multiple=32}",
        "lowrank-weights{rank=16}",
        "quantize-weights{mean-bits=6.5}",
        "quantize-weights{bits=5, symmetric=false, skip=none}",
    ],
)
def test_kernels_compute_what_torch_computes(text: str) -> None:
    program = model()
    for one in find_passes(text):
        assert run_calibrated(one, program, ids(2, 5, 50)).sites
    tokens = torch.from_numpy(ids(1, 5, 50, seed=3)[0]["ids"])
    made = irx.compile(program, target="tvm:cpu", pipeline="default")
    expected = irx.compile(program, target="torch:cpu", pipeline="none")(tokens)
    assert made.ledger().summary.fallbacks == {}
    assert (made(tokens) - expected).abs().max() < 1e-4 * expected.abs().max()
    assert "mean-bits" not in text or {"q8_0", "q4_0"} <= {weight.dtype for weight in program.used_weights()}
