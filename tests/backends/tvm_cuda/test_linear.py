"""Products of one row through TVM, on the CPU, against the oracle: formats, norms, epilogues, odd sizes."""

from __future__ import annotations

import numpy as np
import pytest

from irx.analysis.reference import evaluate
from irx.backends.regions.lowered import Lowered, Refusal
from irx.backends.tvm_cuda.kernel import CudaKernel
from irx.backends.tvm_cuda.rules.linear import rule
from irx.ir.graph import Graph
from irx.ir.weights import Weights
from tests.backends.triton.linear_bodies import array, body, default, every_index, gated, plain
from tests.backends.tvm_cuda.on_cpu import prepare, run_on_cpu

TURNED = body(
    ["x: f32[B, 24]", "w: f32[24, 10]"],
    ["%t = irx.permute(%w) {order=[1, 0]} : f32[10, 24]", "%l = irx.linear(%x, %t) : f32[B, 10]"],
    [("l", "f32[B, 10]")],
)
BODIES: dict[str, tuple[Graph, float]] = {
    "f32": (plain("f32", 64, 96), 1e-5),
    "odd": (plain("f32", 7, 33), 1e-5),
    "one column": (plain("f32", 1, 33), 1e-5),
    "one of k": (plain("bf16", 31, 1, "bf16"), 1e-2),
    "bf16": (plain("bf16", 101, 33, "bf16"), 1e-2),
    "bf16 of f32": (plain("bf16", 7, 7), 1e-5),
    "f16": (plain("f16", 50, 64, "f16"), 1e-3),
    "turned": (TURNED, 1e-5),
    **{form: (plain(form, 20, 512), 1e-4) for form in ("q8_0", "q4_0", "q5_1", "q6_k", "u4g16")},
    "i4 of bf16": (plain("i4g128", 20, 256, "bf16"), 1e-2),
    "gated": (gated("bf16", 24, 96, "bf16"), 1e-2),
    "gated codes": (gated("q4_1", 24, 96), 1e-4),
    "every index": (every_index(), 1e-5),
}


@pytest.fixture(scope="module")
def lowered() -> dict[str, Lowered]:
    made = {name: rule(graph, default()) for name, (graph, _) in BODIES.items()}
    found = {name: one for name, one in made.items() if one is not None}
    prepare(call.kernel for one in found.values() for call in one.cases[0].calls)
    return found


@pytest.mark.parametrize("name", BODIES)
def test_a_row_is_what_the_oracle_says(lowered: dict[str, Lowered], name: str) -> None:
    graph, allowed = BODIES[name]
    arrays = {value.name: array(value, 1) for value in graph.inputs}
    found = run_on_cpu(lowered[name], graph, arrays, {"B": 1})
    wanted = evaluate(graph, arrays, {"B": 1}, Weights())
    for output, right in zip(graph.output_names, wanted, strict=True):
        assert found[output].shape == right.shape
        assert np.abs(found[output].astype(np.float64) - right).max() <= allowed * np.abs(right).max()


def test_more_rows_are_triton_s(lowered: dict[str, Lowered]) -> None:
    first, *rest = lowered["gated"].cases
    assert first.most == 1
    assert [type(call.kernel) for call in first.calls] == [CudaKernel] * 3  # the norm, one product, the other
    assert rest
    assert not any(isinstance(call.kernel, CudaKernel) for case in rest for call in case.calls)


def test_both_read_one_copy_of_the_weights(lowered: dict[str, Lowered]) -> None:
    layouts = [
        {binding.layout for call in case.calls for binding in call.bindings.values() if hasattr(binding, "layout")}
        for case in lowered["q4_0"].cases
    ]
    assert all(one == layouts[0] and len(one) == 1 for one in layouts)


def test_a_fixed_number_of_rows_is_refused() -> None:
    graph = body(["x: f32[3, 8]", "w: f32[4, 8]"], ["%l = irx.linear(%x, %w) : f32[3, 4]"], [("l", "f32[3, 4]")])
    with pytest.raises(Refusal, match="3 rows"):
        rule(graph, default())
