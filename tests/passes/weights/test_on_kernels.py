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
from tests.passes.weights.test_slice_ffn import GRAPH, HEADER

pytest.importorskip("tvm", reason="the cpu extra is not installed")


def model() -> Program:
    program = parse(HEADER + GRAPH.format(name="forward"))
    bind_random_weights(program.weights)
    return program


@pytest.mark.parametrize(
    "text",
    [
        "slice-ffn{keep=0.667, multiple=16}",
        "quantize-weights{skip=none} | slice-ffn{keep=0.667, multiple=32}",
        "lowrank-weights{rank=16}",
        "quantize-weights{mean-bits=6.5}",
    ],
)
def test_kernels_compute_what_torch_computes(text: str) -> None:
    program = model()
    for one in find_passes(text):
        assert run_calibrated(one, program, ids(2, 5, 50)).sites
    tokens = torch.from_numpy(ids(1, 5, 50, seed=3)[0]["ids"])
    made = irx.compile(program, target="tvm:cpu", pipeline="default")
    expected = irx.compile(program, target="torch:cpu", pipeline="none")(tokens)[0]
    assert made.ledger().summary.fallbacks == {}
    assert (made(tokens)[0] - expected).abs().max() < 1e-4 * expected.abs().max()
