"""Generated kernels against the oracle: every op and dtype, sizes odd, prime and 1, and regions of many ops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from irx.analysis.reference import evaluate
from irx.backends.regions.lowered import Lowered, Refusal
from irx.backends.tvm.rules.regions import rule
from irx.ir.graph import Builder, Graph
from irx.ir.opdef import registry
from irx.ir.weights import Weights
from tests.backends.region_cases import (
    COLUMNS,
    MAKES,
    NOT_GENERATED,
    SIZES,
    Batch,
    Make,
    batches_of,
    built,
    close,
    input_of,
    random_of,
    table_cases,
)
from tests.backends.tvm.lowered_run import choices, prepare, run_lowered


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    made = batches_of(rule, choices())
    prepare([batch.lowered for batch in made])
    return made


def test_every_case_of_the_table_is_computed(batches: list[Batch]) -> None:
    for batch in batches:
        batch.check(run_lowered)


def test_the_table_covers_the_ops_that_kernels_are_generated_for() -> None:
    assert {case.op for case, _ in table_cases()} == registry().keys() - NOT_GENERATED


@pytest.fixture(scope="module")
def regions() -> dict[tuple[str, int], tuple[Graph, Lowered]]:
    made = {(make.__name__, columns): built(make, columns, rule, choices()) for make in MAKES for columns in COLUMNS}
    prepare([lowered for _, lowered in made.values()])
    return made


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("make", MAKES, ids=lambda make: make.__name__)
def test_a_region_computes_what_the_oracle_says(regions: Any, make: Make, columns: int) -> None:
    graph, lowered = regions[make.__name__, columns]
    for batch, length in SIZES:
        inputs = random_of(graph, {"B": batch, "S": length})
        found = run_lowered(lowered, graph, inputs)
        wanted = evaluate(graph, inputs, {}, Weights())
        for name, value, expected in zip(graph.output_names, graph.outputs, wanted, strict=True):
            close(found[name], expected, 1e-2 if value.dtype == "bf16" else 1e-5, f"{make.__name__}.{name}")


@pytest.mark.parametrize("threads", [1, 2])
def test_ids_outside_of_the_table_read_its_ends(threads: int) -> None:
    graph = Graph("")
    ids, table = input_of(graph, 4, dtype="i64"), input_of(graph, 5, 3)
    graph.set_outputs({"y": Builder(graph)("embedding", ids, table)})
    lowered = rule(graph, choices())
    assert lowered is not None
    rows = np.arange(15, dtype=np.float32).reshape(5, 3)
    found = run_lowered(lowered, graph, {"x0": np.array([-1, 99, -99, 2]), "x1": rows}, threads=threads)
    assert np.array_equal(found["y"], rows[[4, 4, 0, 2]])


def test_what_no_kernel_is_generated_for_is_refused_by_name() -> None:
    graph = Graph("")
    x = input_of(graph, 3, 4)
    graph.set_outputs({"y": Builder(graph)("matmul", x, input_of(graph, 4, 2))})
    with pytest.raises(Refusal, match="matmul"):
        rule(graph, choices())
