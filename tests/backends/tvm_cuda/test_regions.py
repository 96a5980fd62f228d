"""Fused regions through TVM: what their kernels compute, on the CPU, against the oracle; and what is left to Triton."""

from __future__ import annotations

import numpy as np
import pytest

from irx.analysis.reference import evaluate
from irx.backends.regions.lowered import Lowered, Refusal
from irx.backends.tvm_cuda.rules.regions import rule
from irx.ir.graph import Builder, Graph
from irx.ir.opdef import registry
from irx.ir.weights import Weights
from tests.backends.region_cases import MAKES, NOT_GENERATED, Batch, built, close, input_of, random_of, table_cases
from tests.backends.triton.lowered_run import choices
from tests.backends.tvm_cuda.on_cpu import prepare, run_on_cpu

LEFT = {"argmax", "cumsum", "topk", "gather", "gather_tokens", "relative_bias", "scatter_slice", "softplus"}
"""Ops of the other path that this one has no words for."""


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    """A case of every op that is served, compiled together."""
    first = {case.op: (case, dtype) for case, dtype in reversed(table_cases()) if case.op not in LEFT}
    made = [Batch([pair], rule, choices()) for pair in first.values()]
    prepare(kernel for batch in made for kernel in batch.lowered.kernels)
    return made


def test_every_op_is_computed_or_left_by_name(batches: list[Batch]) -> None:
    computed = {case.op for batch in batches for case, *_ in batch.cases}
    assert computed | LEFT == registry().keys() - NOT_GENERATED
    for batch in batches:
        batch.check(run_on_cpu)


@pytest.fixture(scope="module")
def regions() -> dict[str, tuple[Graph, Lowered]]:
    made = {make.__name__: built(make, 13, rule, choices()) for make in MAKES if make.__name__ != "middle"}
    prepare(kernel for _, lowered in made.values() for kernel in lowered.kernels)
    return made


@pytest.mark.parametrize("name", [make.__name__ for make in MAKES if make.__name__ != "middle"])
def test_a_region_computes_what_the_oracle_says(regions: dict[str, tuple[Graph, Lowered]], name: str) -> None:
    graph, lowered = regions[name]
    for sizes in ({"B": 1, "S": 1}, {"B": 3, "S": 7}):
        inputs = random_of(graph, sizes)
        found, wanted = run_on_cpu(lowered, graph, inputs), evaluate(graph, inputs, {}, Weights())
        for output, value, expected in zip(graph.output_names, graph.outputs, wanted, strict=True):
            close(found[output], expected, 1e-2 if value.dtype == "bf16" else 1e-5, f"{name}.{output}")


def test_ids_outside_of_the_table_read_its_ends() -> None:
    graph = Graph("")
    ids, table = input_of(graph, 4, dtype="i64"), input_of(graph, 5, 3)
    graph.set_outputs({"y": Builder(graph)("embedding", ids, table)})
    lowered = rule(graph, choices())
    assert lowered is not None
    rows = np.arange(15, dtype=np.float32).reshape(5, 3)
    found = run_on_cpu(lowered, graph, {"x0": np.array([-1, 99, -99, 2]), "x1": rows})
    assert np.array_equal(found["y"], rows[[4, 4, 0, 2]])


def test_a_cast_rounds() -> None:
    graph = Graph("")
    x = input_of(graph, 3)
    half = Builder(graph)("cast", x, dtype="f16")
    graph.set_outputs({"y": Builder(graph)("cast", half, dtype="f32")})
    lowered = rule(graph, choices())
    assert lowered is not None
    found = run_on_cpu(lowered, graph, {"x0": np.float32([1.0001, 1.00048828125, 3.0])})
    assert found["y"].tolist() == [1.0, 1.0, 3.0]  # halfway goes to the even one


def test_what_tvm_has_no_words_for_is_refused_by_name() -> None:
    graph = Graph("")
    graph.set_outputs({"y": Builder(graph)("argmax", input_of(graph, 3, 4), axis=-1)})
    with pytest.raises(Refusal, match="no argmax"):
        rule(graph, choices())
