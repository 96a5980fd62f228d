"""Kernels that choose tokens, look at attention for it and round tokens, interpreted, on the cases of the op tables."""

from __future__ import annotations

import numpy as np
import pytest

from irx.analysis.reference import evaluate
from irx.backends.triton.rules.tokens import TEMPLATES, rule
from irx.ir.graph import Graph
from irx.ir.types import TensorType
from irx.ir.weights import Weights
from tests.backends.triton.lowered_run import choices, run_lowered
from tests.ops.cases import Case, all_cases

CASES = [(case, dtype) for case in all_cases() if case.op in TEMPLATES for dtype in case.dtypes]
LIMITS = {"f32": 1e-5, "bf16": 1e-2, "f16": 1e-3}


@pytest.mark.parametrize(("case", "dtype"), CASES, ids=[f"{case}-{dtype}" for case, dtype in CASES])
def test_a_kernel_computes_what_the_reference_says(case: Case, dtype: str) -> None:
    arrays, graph = case.arrays(dtype), Graph("tokens")
    operands = [
        None if kind is None else graph.add_input(f"x{i}", kind)
        for i, kind in enumerate(case.types(arrays))
        if kind is None or isinstance(kind, TensorType)
    ]
    node = graph.add(case.op, operands, case.attrs)
    graph.set_outputs({f"y{i}": value for i, value in enumerate(node.outputs)})
    given = {f"x{i}": array for i, array in enumerate(arrays) if array is not None}
    lowered = rule(graph, choices())
    assert lowered is not None
    found = run_lowered(lowered, graph, given)
    for made, wanted in zip(found.values(), evaluate(graph, given, {}, Weights()), strict=True):
        finite = np.isfinite(wanted)
        assert np.array_equal(np.asarray(made, np.float64)[~finite], wanted[~finite])
        error = np.abs(np.asarray(made, np.float64) - wanted)[finite].max(initial=0)
        assert error <= LIMITS[dtype] * np.abs(wanted[finite]).max(initial=0), case


def test_every_op_has_a_case() -> None:
    assert {case.op for case, _ in CASES} == TEMPLATES.keys()
