"""Planted faults on the whole path: each is refused and named in the ledger, and what is compiled is right without it.

More of them: kernels and schedules in tests/backends/tvm (test_checking, test_tuning_runner) and tests/tuning, passes
without gain in tests/pipeline/test_gain, a budget of zero in test_budget.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import irx
from irx.analysis.blocks import find_blocks
from irx.analysis.random_weights import bind_random_weights
from irx.backends.regions.lowered import Call
from irx.backends.tvm import steps
from irx.backends.tvm.codegen import missing
from irx.errors import PassRefused
from irx.ir import packing
from irx.ir.graph import Graph, Node
from irx.ir.program import Program
from irx.ledger import REFUSED, Row
from irx.passes.depth.removal import Removal
from irx.pipeline.base import Context, Effect, Pass, Report, Site, Stage
from irx.pipeline.index import PassIndex
from irx.rewrite.cleanup import erase_unused
from tests.backends.tvm.planting import planted
from tests.passes.small_models import WORDS, decoder

IDS = torch.from_numpy(np.random.default_rng(0).integers(0, WORDS, (2, 7)))


class Swap(Pass):
    """Norms what is added, instead of the sum: as if the two could change places."""

    name = "swap"
    stage = Stage.FUSE
    effect = Effect.ROUNDING

    def run(self, program: Program, ctx: Context) -> Report:
        sites = []
        for graph in program.graphs.values():
            norm = [node for node in graph.nodes if node.op.name == "rms_norm"][1]
            total = producer(norm, 0)
            assert total.op.name == "add"
            sites.append(_swapped(graph, norm, total))
        return Report(sites)


def _swapped(graph: Graph, norm: Node, total: Node) -> Site:
    parts = [graph.add("rms_norm", [x, norm.inputs[1]], norm.attrs, before=norm).output for x in total.inputs]
    graph.replace(norm.output, graph.add("add", parts, before=norm).output)
    return Site(graph.name, norm.loc, "a norm and a sum change places")


class Halve(Pass):
    """Leaves a layer's attention out of decode, and forgets prefill."""

    name = "halve"
    stage = Stage.DEPTH
    effect = Effect.LOSSY

    def run(self, program: Program, ctx: Context) -> Report:
        graph = program.graphs["decode"]
        block = find_blocks(graph).blocks[1]
        (unit,) = (unit for unit in block.units if unit.kind == "attention")
        assert unit.attention is not None
        append = producer(unit.attention, 1)
        Removal(graph).leave_out([unit], block)
        (state,) = unit.states
        graph.replace(append.output, state)
        erase_unused(graph, [append])
        return Report([Site("decode", append.loc, "left out")])


def producer(node: Node, operand: int) -> Node:
    """The node that makes an operand."""
    value = node.inputs[operand]
    assert value is not None and value.producer is not None
    return value.producer


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("irx.api.optimizing.passes", lambda: PassIndex.of(Swap, Halve))


def refused(pipeline: str) -> Row:
    """The row of the one pass, which is refused; what is compiled computes what the exact program does."""
    made = irx.compile(decoder(2), target="torch:cpu", pipeline=pipeline)
    exact = irx.compile(decoder(2), target="torch:cpu", pipeline="")
    torch.testing.assert_close(made(IDS), exact(IDS), rtol=0, atol=0)
    torch.testing.assert_close(made.session(2).append(IDS), exact.session(2).append(IDS), rtol=0, atol=0)
    with pytest.raises(PassRefused, match=pipeline.partition("{")[0]):
        irx.compile(decoder(2), target="torch:cpu", pipeline=pipeline, strict=True)
    (row,) = made.ledger().rows[:1]
    assert row.decision == REFUSED
    return row


def test_a_pass_that_reorders_what_does_not_commute(toys: None) -> None:
    row = refused("swap")
    assert (row.name, row.decision) == ("swap", REFUSED)
    assert "the whole program differs behind it" in row.reason


def test_a_skip_that_leaves_the_cache_inconsistent(toys: None) -> None:
    row = refused("halve")
    assert row.reason.endswith("@prefill writes to the KV state 'kv1', and @decode gives it back as it came")


@pytest.mark.parametrize("options", ["skip=none", "bits=4, skip=none", "bits=4, symmetric=false, skip=none"])
def test_a_quantizer_with_scale_one(options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_scale", lambda extent, codes, spare=0.5: np.ones_like(extent))
    row = refused(f"quantize-weights{{{options}}}")
    assert row.name == "quantize-weights"
    assert "$embed as " in row.reason and "steps of its group" in row.reason


SCALED = """
weight $w : f32[16, 24]
graph @forward(%x: f32[B, 24]) -> (y: f32[B, 16]) {
  %a = irx.linear(%x, $w)  // model.head @ net.py:3
  %y = irx.mul(%a, 0.171875)  // model.scale @ net.py:4
  return %y
}
"""


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_a_fused_kernel_that_drops_the_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRX_CACHE_DIR", str(tmp_path))
    dropped: list[str] = []

    def unscaled(call: Call, body: Graph) -> Call:
        if "0.171875" not in call.kernel.body:
            return call
        dropped.append(call.kernel.name)
        return replace(call, kernel=replace(call.kernel, body=call.kernel.body.replace("0.171875", "1.0")))

    monkeypatch.setattr(steps, "RULES", planted(unscaled, "linear"))
    made = irx.compile(_scaled(), target="tvm:cpu", pipeline="fuse-epilogue")
    assert dropped, "the scale is part of the product's kernel"
    (reason,) = made.ledger().summary.fallbacks.values()
    assert "is refused: its result is off by" in reason
    x: Any = torch.randn(5, 24)
    exact = irx.compile(_scaled(), target="torch:cpu", pipeline="")
    torch.testing.assert_close(made(x), exact(x), rtol=1e-4, atol=1e-5)


def _scaled() -> Program:
    program = irx.parse(SCALED)
    bind_random_weights(program.weights)
    return program
