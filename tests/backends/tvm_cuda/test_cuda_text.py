"""The CUDA text of kernels, run on the CPU thread by thread, against the oracle: a launch but for the device."""

from __future__ import annotations

import shutil
from functools import cache
from typing import Any

import numpy as np
import pytest

from irx.analysis.reference import evaluate
from irx.backends.regions.lowered import Lowered
from irx.backends.tvm_cuda import nvrtc
from irx.backends.tvm_cuda.compiling import try_kernels
from irx.backends.tvm_cuda.kernel import CudaKernel
from irx.backends.tvm_cuda.rules import linear, regions
from irx.ir.graph import Graph
from irx.ir.weights import Weights
from irx.target import find_device
from tests.backends.region_cases import add_norm, built, gated, masked_softmax, random_of
from tests.backends.triton.linear_bodies import array, default, every_index, plain
from tests.backends.triton.lowered_run import choices
from tests.backends.tvm_cuda.emulated import runner

pytest.importorskip("tvm")
pytestmark = [
    pytest.mark.skipif(nvrtc.missing() is not None, reason=str(nvrtc.missing())),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]
MAKES = {make.__name__: make for make in (add_norm, masked_softmax, gated)}
BODIES = {"plain": plain("f32", 50, 96), "norm and epilogue": every_index()}


@cache
def lowered(name: str) -> tuple[Graph, Lowered]:
    if name in MAKES:
        return built(MAKES[name], 131, regions.rule, choices())
    made = linear.rule(BODIES[name], default())
    assert made is not None
    return BODIES[name], made


@cache
def run() -> Any:
    every = [kernel for key in (*MAKES, *BODIES) for kernel in lowered(key)[1].kernels]
    made, failures = try_kernels([k for k in every if isinstance(k, CudaKernel)], find_device("a100"))
    assert not failures
    return runner(made)


@pytest.mark.parametrize("name", MAKES)
def test_a_region(name: str) -> None:
    graph, made = lowered(name)
    inputs = random_of(graph, {"B": 2, "S": 3})
    found, wanted = run()(made, graph, inputs), evaluate(graph, inputs, {}, Weights())
    for output, right in zip(graph.output_names, wanted, strict=True):
        assert np.abs(found[output] - right).max() <= 1e-5 * np.abs(right).max()


@pytest.mark.parametrize("name", BODIES)
def test_a_product_of_one_row(name: str) -> None:
    graph, made = lowered(name)
    arrays = {value.name: array(value, 1) for value in graph.inputs}
    found, wanted = run()(made, graph, arrays, {"B": 1}), evaluate(graph, arrays, {"B": 1}, Weights())
    for output, right in zip(graph.output_names, wanted, strict=True):
        assert np.abs(found[output] - right).max() <= 1e-5 * np.abs(right).max()
