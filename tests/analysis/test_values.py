"""Value-free values: which they are, what they are made of, and their arrays."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import irx.ops  # noqa: F401
from irx.analysis.reference import evaluate
from irx.analysis.rows import rows_of
from irx.analysis.values import (
    Prober,
    ValueFree,
    dependent,
    inputs_of,
    integers_in,
    largest_working,
    size_names,
)
from irx.ir.graph import Value
from irx.ir.parser import parse

TEXT = """
program @p {
  size B in [1, 8]
  size S in [1, 64]
  weight $table : f32[16, 4]
  graph @g(%ids: i64[B, S]) -> (a: f32[B, S, 4], b: f32[1, S, 4]) {
    %i = irx.arange() {stop=S} : i64[S]
    %c = irx.minimum(%i, 15) : i64[S]
    %e = irx.embedding(%c, $table) : f32[S, 4]
    %r = irx.reshape(%e) {shape=[1, S, 4]} : f32[1, S, 4]
    %x = irx.embedding(%ids, $table) : f32[B, S, 4]
    %a = irx.add(%x, %r) : f32[B, S, 4]
    return %a, %r
  }
}
"""


@pytest.fixture(name="values")
def _values() -> dict[str, Value]:
    graph = parse(TEXT).graphs["g"]
    return {v.name: v for node in graph.nodes for v in node.outputs} | {v.name: v for v in graph.inputs}


@pytest.fixture(name="prober")
def _prober() -> Prober:
    program = parse(TEXT)
    table = np.arange(64, dtype=np.float32).reshape(16, 4)
    program.weights.bind("table", lambda: table)
    return Prober(program.weights, partial(evaluate, weights=program.weights))


def test_a_value_is_free_when_no_input_reaches_it(values: dict[str, Value]) -> None:
    free = ValueFree()
    assert [name for name in ("i", "c", "e", "r", "x", "a") if values[name] in free] == ["i", "c", "e", "r"]
    assert values["ids"] not in free


def test_what_values_are_made_of(values: dict[str, Value]) -> None:
    assert inputs_of([values["a"]]) == [values["ids"]]
    assert inputs_of([values["r"]]) == []
    assert integers_in(values["r"]) >= {15, 4}
    assert size_names(values["r"]) == {"S"}
    graph = parse(TEXT).graphs["g"]
    assert {v.name for v in dependent(graph, graph.inputs)} == {"ids", "x", "a"}


def test_arrays_at_a_chosen_size(values: dict[str, Value], prober: Prober) -> None:
    array = prober.array(values["r"], {"S": 20})
    assert array.shape == (1, 20, 4)
    assert (array[0, 15:] == [60, 61, 62, 63]).all()


def test_some_rows_are_those_of_the_whole(values: dict[str, Value], prober: Prober) -> None:
    whole = prober.array(values["r"], {"S": 20})
    some = rows_of(prober, values["r"], 1, [0, 7, 19], {"S": 20})
    np.testing.assert_array_equal(some, whole[:, [0, 7, 19]])


def test_rows_are_chosen_before_a_large_product_is_formed() -> None:
    text = """
    graph @g() -> (m: bool[S, S]) {
      %i = irx.arange() {stop=S} : i64[S]
      %r = irx.reshape(%i) {shape=[S, 1]} : i64[S, 1]
      %d = irx.sub(%r, %i) : i64[S, S]
      %f = irx.full() {shape=[S, S], value=1000, dtype="i64"} : i64[S, S]
      %m = irx.lt(%d, %f) : bool[S, S]
      return %m
    }"""
    program = parse(text)
    made: list[int] = []

    def oracle(graph: object, inputs: object, sizes: object) -> list[object]:
        made.extend(node.outputs[0].tensor.rank for node in graph.nodes)  # type: ignore[attr-defined]
        shapes = [node.outputs[0].shape for node in graph.nodes]  # type: ignore[attr-defined]
        assert not any(len(shape) == 2 and shape[0] == shape[1] for shape in shapes), "the whole is computed"
        return evaluate(graph, inputs, sizes, program.weights)  # type: ignore[arg-type]

    (mask,) = program.graphs["g"].outputs
    rows = rows_of(Prober(program.weights, oracle), mask, 0, [0, 5000], {"S": 6000})  # type: ignore[arg-type]
    assert rows.shape == (2, 6000)
    assert rows[0].all()
    assert rows[1].sum() == 1999
    assert made


def test_the_largest_size_that_works_is_found() -> None:
    def compute(size: int) -> None:
        if size > 37:
            raise IndexError

    assert largest_working(compute, 5, 1000) == 37
    assert largest_working(compute, 5, 20) == 20
