"""Plans: any size without more code, any tensor a user may have, any number of threads, and what artifacts lack."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from irx.analysis.random_weights import bind_random_weights
from irx.backends.torch.plan import Plan as TorchPlan
from irx.backends.tvm import codegen, native, plan
from irx.backends.tvm.backend import BACKEND, CHOICES, GRAPH
from irx.backends.tvm.codegen import missing
from irx.backends.tvm.plan import Plan
from irx.errors import DamagedArtifact, KernelFailed
from irx.ir.parser import parse
from irx.ir.program import Program
from irx.runtime.snapshot import tensor_of
from irx.runtime.store import WeightStore
from irx.target import host_cpu

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

TEXT = """
weight $g : f32[40]
weight $w : f32[24, 40]
weight $b : f32[24]
graph @forward(%x: f32[B, S, 40]) -> (y: f32[B, S, 24], x: f32[B, S, 40], b: f32[24], again: f32[B, S, 24]) {
  %n = irx.rms_norm(%x, $g) {eps=1e-05}
  %l = irx.linear(%n, $w, $b)
  %y = irx.silu(%l)
  return %y, %x, $b, %y
}
"""
SHAPES = [(1, 1), (1, 2), (2, 3), (16, 1), (3, 7), (1, 61), (5, 33)]


def program() -> Program:
    found = parse(TEXT)
    bind_random_weights(found.weights)
    return found


@pytest.fixture(scope="module")
def blobs() -> dict[str, bytes]:
    made = program()
    return BACKEND.build(made, made.graphs["forward"], host_cpu())


@pytest.fixture
def fast(blobs: dict[str, bytes]) -> Plan:
    return bound(BACKEND.load(blobs, host_cpu()))


@pytest.fixture(scope="module")
def reference() -> TorchPlan:
    return bound(TorchPlan(program().graphs["forward"], torch.device("cpu")))


def bound(one: Any) -> Any:
    weights = program().weights
    one.bind(WeightStore(lambda name: tensor_of(weights, name), torch.device("cpu")))
    return one


def close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert float((a - b).abs().max()) <= 1e-5 * float(b.abs().max())


def test_every_shape_is_right_and_none_compiles_anything(
    fast: Plan, reference: TorchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fast.fallbacks == {}
    monkeypatch.setattr(codegen, "_compiled", None)
    functions = dict(fast.functions)
    for shape in [*SHAPES, *SHAPES[:2]]:
        x = torch.randn(*shape, 40)
        close(fast(x), reference(x))
    assert fast.functions == functions


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads_follow_the_users_setting_and_change_no_bit(fast: Plan, threads: int) -> None:
    x, before = torch.randn(3, 21, 40), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = fast(x)
        torch.set_num_threads(threads)
        found = fast(x)
    finally:
        torch.set_num_threads(before)
    assert threads in {key[-1] for key in fast._bound}
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def _unaligned(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros(1), x.flatten()])[1:].view(x.shape)


def _transposed(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(0, 2).contiguous().transpose(0, 2)


def _every_other(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x, -x], dim=-1).flatten(2)[..., ::2]


def _rows_of_more(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x[:1], x, x[:1]])[1:-1]


VIEWS: list[Callable[[torch.Tensor], torch.Tensor]] = [_unaligned, _transposed, _every_other, _rows_of_more]


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (4, 2000)], ids=["one", "small", "not copied"])
@pytest.mark.parametrize("view", VIEWS)
def test_tensors_that_lie_anywhere(
    view: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, int], fast: Plan, reference: TorchPlan
) -> None:
    x = torch.randn(*shape, 40)
    lying = view(x)
    assert torch.equal(lying, x)
    close(fast(lying), reference(x))
    assert torch.equal(lying, x), "inputs stay as they are"


def test_a_broadcast_tensor(fast: Plan, reference: TorchPlan) -> None:
    x = torch.randn(1, 1, 40).expand(2, 5, 40)
    close(fast(x), reference(x.contiguous()))


def test_results_belong_to_the_caller(fast: Plan) -> None:
    x = torch.randn(2, 3, 40)
    first = fast(x)
    kept = [tensor.clone() for tensor in first]
    fast(torch.randn(2, 3, 40))
    x.zero_()
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))
    for tensor in first:
        tensor.zero_()
    assert torch.equal(fast(torch.randn(2, 3, 40))[2], kept[2]), "not even the weight that is a result"
    assert len({tensor.data_ptr() for tensor in first}) == 4


def test_tables_of_many_sizes_are_let_go(fast: Plan, reference: TorchPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "BINDINGS_KEPT", 3)
    for length in (1, 2, 3, 4, 5, 1, 30, 2):
        x = torch.randn(1, length, 40)
        close(fast(x), reference(x))
        assert len(fast._bound) <= 3


def test_memory_is_that_of_the_largest_call(fast: Plan) -> None:
    fast(torch.randn(1, 50, 40))
    large = fast.bytes
    fast(torch.randn(1, 2, 40))
    assert fast.bytes == large >= 50 * 24 * 4


def test_profile_names_what_takes_the_time(fast: Plan) -> None:
    times = fast.profile(torch.randn(2, 3, 40))
    assert {timed.kernel for timed in times} <= {k.name for s in fast.steps.steps for k in s.lowered.kernels}  # type: ignore[union-attr]
    assert all(timed.seconds > 0 for timed in times)


@pytest.mark.parametrize("file", [GRAPH, CHOICES])
def test_files_that_every_artifact_has(file: str, blobs: dict[str, bytes]) -> None:
    with pytest.raises(DamagedArtifact, match=file):
        BACKEND.load({name: data for name, data in blobs.items() if name != file}, host_cpu())


def test_objects_that_are_missing_are_compiled(blobs: dict[str, bytes], reference: TorchPlan) -> None:
    fast = bound(BACKEND.load({name: blobs[name] for name in (GRAPH, CHOICES)}, host_cpu()))
    x = torch.randn(2, 3, 40)
    close(fast(x), reference(x))


def test_objects_that_are_damaged_are_named(blobs: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = native.Runner()  # one that has not loaded them yet
    monkeypatch.setattr(native, "runner", lambda: fresh)
    broken = {name: b"no object" if name.endswith(".o") else data for name, data in blobs.items()}
    with pytest.raises(KernelFailed, match="cannot be loaded"):
        BACKEND.load(broken, host_cpu())


def test_the_sources_tell_what_they_compute(blobs: dict[str, bytes]) -> None:
    objects = {name.removesuffix(".o") for name in blobs if name.endswith(".o")}
    sources = {name.removesuffix(".py"): data.decode() for name, data in blobs.items() if name.endswith(".py")}
    assert objects
    assert objects == set(sources)
    assert all(text.startswith("# ") and f"def {symbol}(" in text for symbol, text in sources.items())
    assert json.loads(blobs[CHOICES])["refused"] == {}


def test_torch_runs_what_no_rule_takes_between_kernels() -> None:
    text = """
    graph @forward(%x: f32[B, 8]) -> (y: f32[B, 8]) {
      %a = irx.tanh(%x)
      %b = torch.call(%a) {target="aten.erfinv.default", args=[#0], results=[f32[B, 8]]}  // layer.odd @ net.py:7
      %y = irx.neg(%b)
      return %y
    }
    """
    made = parse(text)
    fast = bound(BACKEND.load(BACKEND.build(made, made.graphs["forward"], host_cpu()), host_cpu()))
    x = torch.randn(5, 8)
    np.testing.assert_allclose(fast(x)[0], -torch.erfinv(torch.tanh(x)), rtol=1e-4, atol=1e-5)
    ((node, reason),) = fast.fallbacks.items()
    assert "torch.call at net.py:7 in layer.odd" in node
    assert reason
    (row,) = (row for row in fast.report() if row.name == "partition")
    assert row.what == "2 regions to kernels, 1 to torch"
    assert row.near_misses[0].place == "layer.odd"
