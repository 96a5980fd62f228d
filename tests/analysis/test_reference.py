"""The oracle: sizes, casts, weights in every storage, memory, torch calls, values without inputs."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import irx.ops  # noqa: F401  declares the ops
from irx.analysis.reference import evaluate, evaluate_values, resolve
from irx.errors import InputMismatch, NoReference
from irx.ir.blocks import unpack
from irx.ir.dims import symbol
from irx.ir.graph import Builder, Graph
from irx.ir.opdef import Operand, as_float64
from irx.ir.packing import pack
from irx.ir.types import KVType, TensorType
from irx.ir.weights import Weights
from irx.ops.cache import KVArrays

B, S = symbol("B"), symbol("S")


def build(*inputs: tuple[str, Any]) -> tuple[Graph, Builder, list[Any]]:
    graph = Graph("forward")
    values = [graph.add_input(name, type) for name, type in inputs]
    return graph, Builder(graph), values


def test_sizes_come_from_shapes_and_reach_attributes_and_literals() -> None:
    graph, b, (x,) = build(("x", TensorType((B, S, 6), "f32")))
    split = b("reshape", x, shape=(B, S, 2, 3))
    graph.set_outputs({"split": split, "scaled": b("mul", b("arange", stop=S), 2 * S)})
    array = np.arange(2 * 5 * 6, dtype=np.float32).reshape(2, 5, 6)
    split_array, scaled = evaluate(graph, {"x": array}, {}, Weights())
    np.testing.assert_array_equal(split_array, array.reshape(2, 5, 2, 3))
    np.testing.assert_array_equal(scaled, np.arange(5) * 10)
    assert split_array.dtype == np.float64


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": np.zeros((2, 3))}, "input 'y': f32\\[S, S \\+ 1\\] is missing"),
        ({"x": np.zeros(2), "y": np.zeros((3, 4))}, "input 'x' has the shape \\(2,\\), but f32\\[B, S\\] is needed"),
        ({"x": np.zeros((2, 3)), "y": np.zeros((3, 5))}, "means \\(3, 4\\)"),
        ({"x": np.zeros((2, 3)), "y": np.zeros((2, 3))}, "input 'y' has the shape \\(2, 3\\)"),
    ],
)
def test_inputs_that_do_not_fit_are_named(inputs: dict[str, Any], message: str) -> None:
    graph, _, (x, _) = build(("x", TensorType((B, S), "f32")), ("y", TensorType((S, S + 1), "f32")))
    graph.set_outputs({"x": x})
    with pytest.raises(InputMismatch, match=message):
        evaluate(graph, inputs, {}, Weights())


def test_a_size_that_nothing_binds_is_named() -> None:
    graph, _, (x,) = build(("x", TensorType((2 * S,), "f32")))
    graph.set_outputs({"x": x})
    with pytest.raises(InputMismatch, match="the size 'S' of input 'x' has no value"):
        evaluate(graph, {"x": np.zeros(4)}, {}, Weights())
    np.testing.assert_array_equal(evaluate(graph, {"x": np.zeros(4)}, {"S": 2}, Weights())[0], np.zeros(4))


def test_casts_round_unless_asked_not_to() -> None:
    graph, b, (x,) = build(("x", TensorType((3,), "f32")))
    graph.set_outputs({"y": b("cast", b("cast", x, dtype="bf16"), dtype="f32"), "i": b("cast", x, dtype="i64")})
    array = np.array([1.001, 2.75, -0.3], np.float32)
    rounded, whole = evaluate(graph, {"x": array}, {}, Weights())
    np.testing.assert_array_equal(rounded, array.astype(ml_dtypes.bfloat16).astype(np.float64))
    exact, same = evaluate(graph, {"x": array}, {}, Weights(), round_casts=False)
    np.testing.assert_array_equal(exact, array.astype(np.float64))
    np.testing.assert_array_equal(whole, [1, 2, 0])
    np.testing.assert_array_equal(same, whole)


def test_floats_are_computed_in_float64_whatever_their_type() -> None:
    graph, b, (x,) = build(("x", TensorType((1,), "bf16")))
    graph.set_outputs({"y": b("add", x, 2.0**-40)})
    (y,) = evaluate(graph, {"x": np.ones(1, ml_dtypes.bfloat16)}, {}, Weights())
    assert y[0] == 1 + 2.0**-40


def test_low_precision_weights_are_lifted_and_derived_ones_made() -> None:
    weights = Weights()
    generator = np.random.default_rng(0)
    first = generator.standard_normal((3, 4)).astype(ml_dtypes.bfloat16)
    second = generator.standard_normal((2, 4)).astype(ml_dtypes.bfloat16)
    both = weights.derive("both", "concat", [weights.add_array("a", first), weights.add_array("b", second)], axis=0)
    graph, b, (x,) = build(("x", TensorType((B, 4), "bf16")))
    graph.set_outputs({"y": b("linear", x, both), "z": b("mul", both, 2.0)})
    array = generator.standard_normal((2, 4)).astype(ml_dtypes.bfloat16)
    y, z = evaluate(graph, {"x": array}, {}, weights)
    matrix = np.concatenate([first, second]).astype(np.float64)
    np.testing.assert_allclose(y, array.astype(np.float64) @ matrix.T, rtol=1e-14)
    np.testing.assert_array_equal(z, 2 * matrix)


def packed_weights(rows: int) -> tuple[Weights, Any, Any]:
    raw = np.random.default_rng(0).integers(0, 60, (rows, 2 * 34)).astype(np.uint8)
    weights = Weights()
    return weights, weights.add("w", TensorType((rows, 64), "q8_0"), lambda: raw), raw


def test_packed_weights_are_read_by_embedding_linear_and_others() -> None:
    weights, weight, raw = packed_weights(9)
    graph, b, (ids, x) = build(("ids", TensorType((B, S), "i64")), ("x", TensorType((B, 64), "f32")))
    table = b("dequantize", weight)
    graph.set_outputs({"rows": b("embedding", ids, table), "y": b("linear", x, table)})
    found = np.array([[0, 8, 3]])
    array = np.random.default_rng(1).standard_normal((1, 64)).astype(np.float32)
    rows, y = evaluate(graph, {"ids": found, "x": array}, {}, weights)
    values = unpack(raw, "q8_0").astype(np.float64)
    np.testing.assert_array_equal(rows, values[found])
    np.testing.assert_allclose(y, array.astype(np.float64) @ values.T, rtol=1e-12)
    graph.set_outputs({"sum": b("sum", table, axes=(0,)), "table": table})
    (total, whole) = evaluate(graph, {"ids": found, "x": array}, {}, weights)
    np.testing.assert_allclose(total, values.sum(0), rtol=1e-12)
    np.testing.assert_array_equal(whole, values)


def test_a_derived_weight_may_be_unpacked() -> None:
    weights, weight, raw = packed_weights(3)
    plain = weights.derive("plain", "dequantize", [weight], dtype="bf16")
    expected = unpack(raw, "q8_0").astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(weights.array(plain).astype(np.float32), expected.astype(np.float32))
    assert weights.array(plain).dtype == expected.dtype


def test_packed_weights_are_joined_by_their_raw_rows() -> None:
    weights, first, raw = packed_weights(3)
    second = weights.add("v", TensorType((2, 64), "q8_0"), lambda: raw[:2])
    both = weights.derive("both", "concat", [first, second], axis=0)
    assert str(both.type) == "q8_0[5, 64]"
    np.testing.assert_array_equal(weights.array(both), np.concatenate([raw, raw[:2]]))


def test_a_float_weight_is_packed_when_it_is_needed() -> None:
    array = np.random.default_rng(0).standard_normal((3, 64)).astype(ml_dtypes.bfloat16)
    weights = Weights()
    packed = weights.derive("packed", "quantize", [weights.add_array("w", array)], format="q8_0")
    assert str(packed.type) == "q8_0[3, 64]"
    np.testing.assert_array_equal(weights.array(packed), pack(array, "q8_0"))
    graph, b, (x,) = build(("x", TensorType((B, 64), "bf16")))
    graph.set_outputs({"y": b("linear", x, b("dequantize", packed, dtype="bf16"))})
    (y,) = evaluate(graph, {"x": np.ones((1, 64), ml_dtypes.bfloat16)}, {}, weights)
    np.testing.assert_allclose(y[0], array.astype(np.float64).sum(1), atol=0.2)


def test_a_weight_that_is_widened_is_lifted_where_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).standard_normal((3, 64)).astype(ml_dtypes.bfloat16)
    weights = Weights()
    weight = weights.add_array("w", array)
    graph, b, (ids, x) = build(("ids", TensorType((S,), "i64")), ("x", TensorType((B, 64), "f32")))
    wide = b("cast", weight, dtype="f32")
    graph.set_outputs({"rows": b("embedding", ids, wide), "y": b("linear", x, wide)})
    ones = np.ones((1, 64), np.float32)
    monkeypatch.setattr("irx.analysis.reference.as_float64", _small_only(64))
    rows, y = evaluate(graph, {"ids": np.array([2]), "x": ones}, {}, weights)
    np.testing.assert_array_equal(rows, array[[2]].astype(np.float64))
    np.testing.assert_allclose(y[0], array.astype(np.float64).sum(1), rtol=1e-12)


def _small_only(most: int) -> Any:
    def lifted(array: Any) -> Any:
        assert array.size <= most, "a whole weight is lifted"
        return as_float64(array)

    return lifted


def test_an_embedding_unpacks_only_the_rows_it_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, weight, _ = packed_weights(5000)
    graph, b, (ids,) = build(("ids", TensorType((S,), "i64")))
    graph.set_outputs({"rows": b("embedding", ids, b("dequantize", weight))})
    unpacked: list[int] = []

    def watched(raw: Any, form: str) -> Any:
        unpacked.append(len(raw))
        return unpack(raw, form)

    monkeypatch.setattr("irx.analysis.reference.unpack", watched)
    evaluate(graph, {"ids": np.array([4, 4999])}, {}, weights)
    assert unpacked == [2]


def test_packed_input_of_an_extracted_part() -> None:
    _, _, raw = packed_weights(9)
    graph, b, (weight,) = build(("w", TensorType((9, 64), "q8_0")))
    graph.set_outputs({"w": b("dequantize", weight)})
    np.testing.assert_array_equal(evaluate(graph, {"w": raw}, {}, Weights())[0], unpack(raw, "q8_0"))


def test_values_are_freed_after_their_last_use() -> None:
    graph, b, (x,) = build(("x", TensorType((4,), "f32")))
    alive: list[weakref.ref[Any]] = []

    def call(node: Any, operands: Sequence[Any], attrs: Any) -> list[Any]:
        result = np.array(operands[0] + 1)
        alive.append(weakref.ref(result))
        return [result]

    value = x
    for _ in range(4):
        value = b("torch.call", value, target="aten.add", results=(TensorType((4,), "f32"),))
        value = b("neg", value)
    graph.set_outputs({"y": value})
    counts: list[int] = []

    def counting(node: Any, operands: Sequence[Any], attrs: Any) -> list[Any]:
        counts.append(sum(ref() is not None for ref in alive))
        return call(node, operands, attrs)

    evaluate(graph, {"x": np.zeros(4)}, {}, Weights(), counting)
    assert counts == [0, 0, 0, 0]


def test_torch_calls_run_through_the_given_function_with_sizes_resolved() -> None:
    graph, b, (x,) = build(("x", TensorType((B, S), "f32")))
    results = (TensorType((B, S + 1), "f32"),)
    y = b("torch.call", x, target="aten.pad", args=(Operand(0), (0, S)), kwargs=(("n", S),), results=results)
    graph.set_outputs({"y": y})
    seen: list[Any] = []

    def call(node: Any, operands: Sequence[Any], attrs: Any) -> list[Any]:
        seen.append(attrs)
        return [np.pad(operands[0], ((0, 0), (0, 1)))]

    (array,) = evaluate(graph, {"x": np.ones((2, 3))}, {}, Weights(), call)
    assert array.shape == (2, 4)
    assert seen[0]["args"] == (Operand(0), (0, 3))
    assert seen[0]["kwargs"] == (("n", 3),)
    assert seen[0]["results"] == (TensorType((2, 4), "f32"),)


def test_a_torch_call_without_torch_is_named_but_a_dead_one_is_not_run() -> None:
    graph, b, (x,) = build(("x", TensorType((2,), "f32")))
    y = b("torch.call", x, target="aten.histc.default", results=(TensorType((2,), "f32"),))
    graph.set_outputs({"x": b("neg", x)})
    evaluate(graph, {"x": np.ones(2)}, {}, Weights())
    graph.set_outputs({"y": y})
    with pytest.raises(NoReference, match=r"aten\.histc\.default"):
        evaluate(graph, {"x": np.ones(2)}, {}, Weights())


def test_kv_states_go_in_and_out() -> None:
    kv = KVType(2, 2, 3, 3, "bf16")
    tensor = TensorType((B, 2, S, 3), "bf16")
    graph, b, (state, k, pos) = build(("kv", kv), ("k", tensor), ("pos", TensorType((B, S), "i64")))
    graph.set_outputs({"kv": b("kv_append", state, k, k, pos)})
    array = np.random.default_rng(0).standard_normal((1, 2, 4, 3)).astype(ml_dtypes.bfloat16)
    inputs = {"kv": KVArrays.empty(kv, 1), "k": array, "pos": np.arange(4)[None]}
    (after,) = evaluate(graph, inputs, {}, Weights())
    np.testing.assert_array_equal(after.k, array.astype(np.float64))
    assert after.k.dtype == np.float64


def test_only_what_the_targets_need_is_evaluated() -> None:
    graph, b, (ids,) = build(("ids", TensorType((1, S), "i64")))
    row, column = b("arange", stop=S), b("reshape", b("arange", stop=S), shape=(S, 1))
    mask = b("le", row, column)
    used = b("where", mask, ids, 0)
    graph.set_outputs({"y": used})
    found = evaluate_values(graph, [mask, row], {"S": 4}, Weights())
    np.testing.assert_array_equal(found[0], np.tri(4, dtype=bool))
    np.testing.assert_array_equal(found[1], np.arange(4))
    with pytest.raises(InputMismatch, match="depend on the graph's inputs ids"):
        evaluate_values(graph, [used], {"S": 4}, Weights())
    (result,) = evaluate_values(graph, [used], {"S": 2}, Weights(), {ids: np.array([[7, 8]])})
    np.testing.assert_array_equal(result, [[7, 0], [7, 8]])


def test_outputs_may_be_inputs_weights_and_repeated() -> None:
    weights = Weights()
    weight = weights.add_array("w", np.ones(2, np.float32))
    graph, _, (x,) = build(("x", TensorType((1,), "f32")))
    graph.set_outputs({"x": x, "again": x, "w": weight})
    assert [len(a) for a in evaluate(graph, {"x": np.zeros(1)}, {}, weights)] == [1, 1, 2]


def test_a_chunked_sequence_equals_the_whole_bit_for_bit() -> None:
    weights = Weights()
    generator = np.random.default_rng(0)
    weight = weights.add_array("w", generator.standard_normal((7, 5)).astype(np.float32))
    graph, b, (x,) = build(("x", TensorType((B, S, 5), "f32")))
    graph.set_outputs({"y": b("silu", b("linear", b("rms_norm", x, eps=1e-6), weight))})
    array = generator.standard_normal((2, 9, 5))
    (whole,) = evaluate(graph, {"x": array}, {}, weights)
    for part in (slice(0, 1), slice(3, 8)):
        (chunk,) = evaluate(graph, {"x": array[:, part]}, {}, weights)
        np.testing.assert_array_equal(chunk, whole[:, part])


def test_resolve_leaves_other_attributes_alone() -> None:
    assert resolve((S, "half", None, 1.5, True, (S + 1,)), {"S": 3}) == (3, "half", None, 1.5, True, (4,))
