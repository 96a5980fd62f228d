"""Planted faults: a kernel whose result is off, or that does not compile, is named and never used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import irx
from irx.analysis.random_weights import bind_random_weights
from irx.backends.regions.lowered import Choices, default_schedule
from irx.backends.tvm import checking, steps
from irx.backends.tvm.backend import BACKEND, CHOICES
from irx.backends.tvm.codegen import missing
from irx.backends.tvm.steps import Lowering
from irx.backends.tvm.templates.attention_kernel import AttentionKernel
from irx.errors import KernelFailed
from irx.ir.program import Program
from irx.target import host_cpu
from tests.backends.tvm.planting import Spoil, planted, unreadable, wrong

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

TEXT = """
weight $w : f32[16, 24]
graph @forward(%x: f32[B, 24]) -> (y: f32[B, 16]) {
  %a = irx.tanh(%x)  // model.act @ net.py:3
  %y = irx.linear(%a, $w)  // model.head @ net.py:4
  return %y
}
"""


def program() -> Program:
    found = irx.parse(TEXT)
    bind_random_weights(found.weights)
    return found


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found right before these tests is not believed here."""
    monkeypatch.setenv("IRX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("IRX_DEBUG", raising=False)


def check(fast: irx.Executable) -> None:
    expected = irx.compile(program(), target="torch", pipeline="")
    for rows in (1, 5, 33):
        x = torch.randn(rows, 24)
        torch.testing.assert_close(fast(x), expected(x), rtol=1e-4, atol=1e-5)


def compiled() -> irx.Executable:
    return irx.compile(program(), target="tvm:cpu", pipeline="")


def test_what_is_right_stays_with_its_kernels() -> None:
    fast = compiled()
    assert fast.ledger().summary.fallbacks == {}
    check(fast)


@pytest.mark.parametrize(("spoil", "said"), [(wrong, "its result is off by"), (unreadable, "planted_fault|nowhere")])
@pytest.mark.parametrize("op", ["linear", "tanh"])
def test_a_planted_fault_is_named_and_torch_runs_the_region(
    spoil: Spoil, said: str, op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "RULES", planted(spoil, op))
    fast = compiled()
    check(fast)
    ((node, reason),) = fast.ledger().summary.fallbacks.items()
    assert op in node
    assert "is refused: " in reason
    assert any(word in reason for word in said.split("|"))
    (row,) = (row for row in fast.ledger().rows if row.name == "partition")
    assert [miss.place for miss in row.near_misses] == ["model.head" if op == "linear" else "model.act"]
    assert row.near_misses[0].reason == reason


@pytest.mark.parametrize("spoil", [wrong, unreadable])
def test_with_debug_it_is_an_error(spoil: Spoil, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "RULES", planted(spoil, "linear"))
    monkeypatch.setenv("IRX_DEBUG", "1")
    with pytest.raises(KernelFailed):
        compiled()


def test_what_was_refused_stays_refused_in_an_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "RULES", planted(wrong, "linear"))
    fast = compiled()
    fast.save(tmp_path / "model.irx")
    loaded = irx.load(tmp_path / "model.irx")
    check(loaded)
    (forward,) = loaded.graphs.values()
    assert len(forward.fallbacks) == 1


def test_a_fault_in_one_case_only_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel of many rows is wrong, that of one row right: every case of a region is run."""
    last: list[Any] = []

    def many_rows_wrong(call: Any, body: Any) -> Any:
        last.append(call.kernel.symbol)
        return wrong(call, body) if call.kernel.name.startswith("gemm") else call

    monkeypatch.setattr(steps, "RULES", planted(many_rows_wrong, "linear"))
    made = program()
    blobs = BACKEND.build(made, made.graphs["forward"], host_cpu())
    refused = json.loads(blobs[CHOICES])["refused"]
    assert len(set(last)) > 1, "there are several kernels to tell apart"
    assert any("gemm" in symbol for symbol in refused)


def test_a_region_is_checked_once_on_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    reason = checking._reason

    def counting(*args: Any) -> str | None:
        checked.append(args[1].name)
        return reason(*args)

    monkeypatch.setattr(checking, "_reason", counting)
    compiled()
    assert sorted(checked) == ["linear", "tanh"]
    compiled()
    assert len(checked) == 2


KEPT = """
graph @forward(%x: f32[B, 2, 1, 16], %pos: i64[B, 1], %kv0: STATE) -> (y: f32[B, 2, 1, 16], kv0: STATE) {
  %kv = irx.kv_append(%kv0, %x, %x, %pos)
  %y = irx.kv_attention(%x, %kv, %pos) {scale=0.25}  // model.attention @ net.py:3
  return %y, %kv
}
""".replace("STATE", "kv<heads=2, dim=16, blocked, f32, kept=0.5>")


def test_an_eviction_that_reads_a_free_slot_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that attend behind what is left see one slot more than is taken."""
    right = AttentionKernel.high
    shifted = {False: lambda kernel, position: f"({position} + 2)", True: right}
    monkeypatch.setattr(AttentionKernel, "high", lambda kernel, at: shifted[kernel.x.keys is not None](kernel, at))
    made = irx.compile(irx.parse(KEPT), target="tvm:cpu", pipeline="")
    ((node, reason),) = made.ledger().summary.fallbacks.items()
    assert "kv_attention" in node and "model.attention" in node
    assert "is refused: its result is off by" in reason


FUSED = """
region @act.0(%x: f32[B, 24]) -> (y: f32[B, 24]) {
  %a = irx.cast(%x) {dtype="BETWEEN"}
  %y = irx.cast(%a) {dtype="f32"}
  return %y
}
graph @forward(%x: f32[B, 24]) -> (y: f32[B, 24]) {
  %y = irx.fusion(%x) {body=@act.0}
  return %y
}
"""


@pytest.mark.parametrize(("dtype", "limit"), [("f32", 1e-5), ("bf16", 2e-3), ("f16", 4e-4)])
def test_what_is_rounded_in_between_may_go_the_other_way(dtype: str, limit: float) -> None:
    """A single element that does is more than float32 allows."""
    graph = irx.parse(FUSED.replace("BETWEEN", dtype)).graphs["forward"]
    (step,) = Lowering(Choices(host_cpu(), default_schedule)).steps(graph).steps
    assert checking.limit_of(step) == pytest.approx(limit)
