"""Plans: what is computed when, what is kept, and that a plan equals the oracle for every binding of sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import irx.ops  # noqa: F401  declares the ops
from irx.analysis.reference import evaluate
from irx.backends.torch import plan as plan_module
from irx.backends.torch.backend import BACKEND
from irx.backends.torch.plan import BINDINGS_KEPT, Plan
from irx.errors import DamagedArtifact, InputMismatch
from irx.ir import blocks
from irx.ir.parser import parse
from irx.ir.program import Program
from irx.runtime.store import Stored, WeightStore
from irx.runtime.tensors import Packed, from_numpy
from irx.target import host_cpu

CPU = torch.device("cpu")


def program(text: str, **arrays: np.ndarray[Any, Any]) -> Program:
    made = parse(text)
    for name, array in arrays.items():
        made.weights.bind(name, lambda array=array: array)
    return made


def store(source: Program, loads: list[str] | None = None) -> WeightStore:
    def load(name: str) -> Stored:
        if loads is not None:
            loads.append(name)
        weight = source.weights[name]
        tensor = from_numpy(source.weights.array(weight))
        return Packed(tensor, weight.dtype) if weight.dtype in blocks.FORMATS else tensor

    return WeightStore(load, CPU)


def kernel(source: Program, name: str = "main", weights: WeightStore | None = None) -> Plan:
    graph = source.graphs[name]
    made = BACKEND.load(BACKEND.build(source, graph, host_cpu()), host_cpu())
    made.bind(weights or store(source))
    return made


MIXED = """
weight $w : f32[8, 8]
graph @main(%x: f32[B, S, 8]) -> (y: f32[B, S, 8], steps: f32[S], top: i64[B, S, 3]) {
  %t = irx.permute($w) {order=[1, 0]}
  %u = irx.mul(%t, 2.0)
  %a = irx.linear(%x, %u)
  %c = irx.arange() {stop=S, dtype="f32"}
  %d = irx.mul(%c, S)
  %e = irx.reshape(%d) {shape=[1, S, 1]}
  %f = irx.add(%a, %e)
  %v, %i = irx.topk(%f) {k=3, axis=-1}
  return %f, %d, %i
}
"""


@pytest.mark.parametrize("sizes", [(1, 1), (2, 5), (3, 4)])
def test_a_plan_equals_the_oracle(sizes: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    source = program(MIXED, w=generator.standard_normal((8, 8)).astype(np.float32))
    x = generator.standard_normal((*sizes, 8)).astype(np.float32)
    expected = evaluate(source.graphs["main"], {"x": x}, {}, source.weights)
    for result, wanted in zip(kernel(source)(torch.from_numpy(x)), expected, strict=True):
        assert np.allclose(result.numpy(), wanted, rtol=1e-5, atol=1e-5)


def test_one_plan_serves_many_bindings_and_keeps_a_bounded_number() -> None:
    source = program(MIXED, w=np.eye(8, dtype=np.float32))
    made = kernel(source)
    for size in range(1, BINDINGS_KEPT + 5):
        y, steps, _ = made(torch.zeros(1, size, 8))
        assert steps.tolist() == [i * size for i in range(size)]
        assert torch.equal(y[0, :, 0], steps)
    assert len(made._specialised) == BINDINGS_KEPT


def test_a_known_binding_does_no_arithmetic_on_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    source = program(MIXED, w=np.eye(8, dtype=np.float32))
    made = kernel(source)
    first = made(torch.ones(2, 3, 8))

    def refuse(*_: Any) -> None:
        raise AssertionError("specialised twice")

    monkeypatch.setattr(plan_module.Plan, "_specialise", refuse)
    assert all(torch.equal(a, b) for a, b in zip(first, made(torch.ones(2, 3, 8)), strict=True))


def test_weights_that_only_make_constants_are_read_once_and_shared() -> None:
    text = """
    weight $w : q8_0[4, 32]
    graph @main(%x: f32[B, 32]) -> (y: f32[B, 4]) {
      %f = irx.dequantize($w)
      %y = irx.linear(%x, %f)
      return %y
    }
    graph @other(%i: i64[B]) -> (y: f32[B, 32]) {
      %f = irx.dequantize($w)
      %y = irx.embedding(%i, %f)
      return %y
    }
    """
    raw = np.random.default_rng(0).integers(0, 60, (4, 34)).astype(np.uint8)
    source, loads = program(text, w=raw), []
    weights = store(source, loads)
    first, second = kernel(source, "main", weights), kernel(source, "other", weights)
    values = blocks.unpack(raw, "q8_0")
    assert torch.equal(second(torch.tensor([3]))[0], torch.from_numpy(values[3:]))
    assert torch.allclose(first(torch.eye(32))[0], torch.from_numpy(values.T))
    assert loads == ["w"]
    assert weights.bytes == values.nbytes


def test_large_values_of_sizes_are_computed_in_every_call() -> None:
    text = """
    graph @main(%x: f32[S]) -> (y: f32[S, S]) {
      %m = irx.full() {shape=[S, S], value=2.0, dtype="f32"}
      %y = irx.mul(%x, %m)
      return %y
    }
    """
    made = kernel(program(text))
    size = 300
    assert size * size * 4 > plan_module.LARGEST_KEPT
    for _ in range(2):
        assert torch.equal(made(torch.ones(size))[0], torch.full((size, size), 2.0))
    assert made.bytes == 0
    made(torch.ones(3))
    assert made.bytes == 3 * 3 * 4


def test_results_belong_to_the_caller() -> None:
    source = program(MIXED, w=np.eye(8, dtype=np.float32))
    made = kernel(source)
    made(torch.zeros(1, 3, 8))[1].fill_(7)
    assert made(torch.zeros(1, 3, 8))[1].tolist() == [0, 3, 6]


def test_a_size_that_is_no_axis_by_itself_is_solved_for() -> None:
    text = """
    graph @main(%x: f32[2*S + 1]) -> (y: f32[S]) {
      %y = irx.slice(%x) {axis=0, start=0, stop=S}
      return %y
    }
    """
    made = kernel(program(text))
    assert made(torch.arange(7.0))[0].tolist() == [0, 1, 2]
    with pytest.raises(InputMismatch, match="not of the form"):
        made(torch.arange(6.0))


def test_scalars_alone_compute_as_in_the_text() -> None:
    text = """
    graph @main(%x: f32[S]) -> (y: f32[S]) {
      %a = irx.sqrt(4.0)
      %b = irx.mul(S, 2)
      %c = irx.add(%a, %b)
      %y = irx.mul(%x, %c)
      return %y
    }
    """
    assert kernel(program(text))(torch.ones(3))[0].tolist() == [8, 8, 8]


def test_a_rotation_is_computed_once_for_all_that_share_it() -> None:
    text = """
    weight $f : f32[4]
    graph @main(%x: f32[B, 2, S, 8], %p: i64[B, S]) -> (y: f32[B, 2, S, 8]) {
      %a = irx.rope(%x, %p, $f)
      %b = irx.rope(%a, %p, $f)
      %y = irx.rope(%b, %p, $f) {style="interleaved"}
      return %y
    }
    """
    source = program(text, f=np.array([1, 0.1, 0.01, 0.001], np.float32))
    made = kernel(source)
    x, p = torch.randn(2, 2, 3, 8), torch.tensor([[0, 1, 2], [5, 6, 7]])
    (expected,) = evaluate(source.graphs["main"], {"x": x.numpy(), "p": p.numpy()}, {}, source.weights)
    assert np.allclose(made(x, p)[0].numpy(), expected, atol=1e-5)
    (special,) = made._specialised.values()
    names = [getattr(step[0], "func", step[0]).__name__ for step in special.steps]
    assert names == ["_rotation", "_rotate", "_rotate", "_rotation", "_rotate"]


def test_random_calls_are_never_constants() -> None:
    text = """
    graph @main(%x: f32[4]) -> (y: f32[4]) {
      %r = torch.call() {target="aten.rand.default", args=[[4]], results=[f32[4]]}
      %y = irx.add(%x, %r)
      return %y
    }
    """
    made = kernel(program(text))
    assert not torch.equal(made(torch.zeros(4))[0], made(torch.zeros(4))[0])


def test_values_are_dropped_after_their_last_reader() -> None:
    source = program(MIXED, w=np.eye(8, dtype=np.float32))
    made = kernel(source)
    made(torch.zeros(1, 2, 8))
    (special,) = made._specialised.values()
    dropped = [register for *_, dead in special.steps for register in dead]
    assert len(dropped) == len(set(dropped))
    assert not set(dropped) & set(made._lowered.outputs)
    assert 0 in dropped, "the input itself"


def test_a_kernel_without_its_file_is_damaged() -> None:
    with pytest.raises(DamagedArtifact, match=r"graph\.irx"):
        BACKEND.load({}, host_cpu())
