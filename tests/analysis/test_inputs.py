"""Random inputs fit how they are used."""

from __future__ import annotations

import numpy as np
import pytest

import irx.ops  # noqa: F401  declares the ops
from irx.analysis.inputs import bind_sizes, random_inputs
from irx.analysis.reference import evaluate
from irx.errors import InputMismatch
from irx.ir.dims import symbol
from irx.ir.graph import Builder, Graph
from irx.ir.parser import parse
from irx.ir.types import KVType, TensorType, numpy_dtype
from irx.ir.weights import Weights

B, S = symbol("B"), symbol("S")
SIZES = {"B": 3, "S": 50}


def small_model() -> tuple[Graph, Weights]:
    """Every kind of input, each used as models use it."""
    graph, weights = Graph("decode"), Weights()
    b = Builder(graph)
    table = weights.add_array("table", np.ones((17, 8), np.float32))
    ids = graph.add_input("ids", TensorType((B, S), "i64"))
    pos = graph.add_input("pos", TensorType((B, S), "i64"))
    kv = graph.add_input("kv", KVType(2, 2, 4, 4, "f32"))
    flags = graph.add_input("flags", TensorType((S,), "bool"))
    packed = graph.add_input("packed", TensorType((3, 32), "q4_0"))
    noise = graph.add_input("noise", TensorType((B, 2, S, 4), "bf16"))
    k = b("cast", noise, dtype="f32")
    state = b("kv_append", kv, k, k, pos)
    attended = b("kv_attention", k, state, pos, scale=0.5)
    hidden = b("where", flags, b("sum", b("embedding", ids, table), axes=(2,)), 0.0)
    graph.set_outputs({"attended": attended, "hidden": hidden, "w": b("dequantize", packed)})
    return graph, weights


def test_inputs_fit_their_use_and_evaluate() -> None:
    graph, weights = small_model()
    inputs = random_inputs(graph, SIZES)
    assert set(inputs["ids"].ravel()) == set(range(17))
    np.testing.assert_array_equal(inputs["pos"], np.broadcast_to(np.arange(50), (3, 50)))
    assert inputs["kv"].positions.shape == (3, 2, 0)
    assert set(inputs["flags"]) == {False, True}
    assert inputs["noise"].dtype == numpy_dtype("bf16")
    assert inputs["packed"].shape == (3, 18)
    results = evaluate(graph, inputs, {}, weights)
    assert [r.shape for r in results] == [(3, 2, 50, 4), (3, 50), (3, 32)]
    assert all(np.isfinite(r).all() for r in results)


def test_the_seed_decides() -> None:
    graph, _ = small_model()
    first, same, other = (random_inputs(graph, SIZES, seed)["noise"].tobytes() for seed in (1, 1, 2))
    assert first == same
    assert first != other


def test_a_size_without_a_value_is_named() -> None:
    graph, _ = small_model()
    with pytest.raises(InputMismatch, match="the size 'S' of input 'ids'"):
        random_inputs(graph, {"B": 1})


def test_given_sizes_are_checked_against_the_shapes() -> None:
    graph, _ = small_model()
    inputs = random_inputs(graph, SIZES)
    assert bind_sizes(graph, inputs, {"T": 9}) == {**SIZES, "T": 9}
    with pytest.raises(InputMismatch, match=r"means \(4, 50\)"):
        bind_sizes(graph, inputs, {"B": 4})


def test_a_state_that_is_only_attended_to_holds_a_token_for_every_position() -> None:
    text = """
graph @decode(%q: f32[B, 2, S, 4], %pos: i64[B, S], %read: kv<heads=1, dim=4, dense, f32>,
              %k: f32[B, 1, S, 4], %written: kv<heads=1, dim=4, dense, f32>)
              -> (y: f32[B, 2, S, 4], z: f32[B, 2, S, 4]) {
  %y = irx.kv_attention(%q, %read, %pos) {scale=0.5}
  %next = irx.kv_append(%written, %k, %k, %pos)
  %z = irx.kv_attention(%q, %next, %pos) {scale=0.5}
  return %y, %z
}
"""
    graph = parse(text).graphs["decode"]
    inputs = random_inputs(graph, {"B": 2, "S": 3})
    assert inputs["read"].positions.tolist() == [[[0, 1, 2]]] * 2
    assert inputs["read"].k.any() and inputs["read"].v.any()
    assert inputs["written"].positions.size == 0
