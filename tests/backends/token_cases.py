"""What kernels of token ops are tried on, whoever makes them: the cases of the op tables, a region each."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from irx.analysis.reference import evaluate
from irx.ir.graph import Graph
from irx.ir.types import TensorType
from irx.ir.weights import Weights
from tests.ops.cases import Case, all_cases

LIMITS = {"f32": 1e-5, "bf16": 1e-2, "f16": 1e-3}


def cases_of(ops: Collection[str]) -> list[tuple[Case, str]]:
    """The cases of these ops, in every dtype of each."""
    return [(case, dtype) for case in all_cases() if case.op in ops for dtype in case.dtypes]


def body(case: Case, dtype: str) -> tuple[Graph, dict[str, Any]]:
    """A region of the one op, and its operands by name."""
    arrays, graph = case.arrays(dtype), Graph("tokens")
    operands = [
        None if kind is None else graph.add_input(f"x{i}", kind)
        for i, kind in enumerate(case.types(arrays))
        if kind is None or isinstance(kind, TensorType)
    ]
    node = graph.add(case.op, operands, case.attrs)
    graph.set_outputs({f"y{i}": value for i, value in enumerate(node.outputs)})
    return graph, {f"x{i}": array for i, array in enumerate(arrays) if array is not None}


def check(graph: Graph, given: Mapping[str, Any], found: Mapping[str, Any], dtype: str) -> None:
    """What kernels made of the operands is what the reference says: near where that is finite, the same elsewhere."""
    for made, wanted in zip(found.values(), evaluate(graph, given, {}, Weights()), strict=True):
        finite = np.isfinite(wanted)
        assert np.array_equal(np.asarray(made, np.float64)[~finite], wanted[~finite])
        error = np.abs(np.asarray(made, np.float64) - wanted)[finite].max(initial=0)
        assert error <= LIMITS[dtype] * np.abs(wanted[finite]).max(initial=0)
