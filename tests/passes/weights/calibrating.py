"""Calibration data for tests: run by the oracle, or by the torch backend where a model is larger than tiny."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from irx.analysis.calibration import Calibration, Inputs
from irx.analysis.reference import evaluate
from irx.backends import find_backend
from irx.ir.opdef import Array
from irx.ir.program import Program
from irx.pipeline.base import Pass, Report
from irx.runtime.arrays import run_graph
from irx.runtime.snapshot import tensor_of
from irx.runtime.store import WeightStore
from irx.target import find_device
from tests.cases.running import context


def by_oracle(program: Program) -> Callable[[Inputs], list[Array]]:
    """What makes a tiny program runnable."""
    (graph,) = program.graphs.values()
    return lambda inputs: evaluate(graph, inputs, {}, program.weights)


def by_torch(program: Program) -> Callable[[Inputs], list[Array]]:
    """What makes any program runnable."""
    (graph,) = program.graphs.values()
    backend, device, cpu = find_backend("torch"), find_device("cpu-generic"), torch.device("cpu")
    kernel = backend.load(backend.build(program, graph, device), device)
    kernel.bind(WeightStore(partial(tensor_of, program.weights), cpu))
    return lambda inputs: run_graph(kernel, {value.name: inputs[value.name] for value in graph.inputs}, cpu)


def run_calibrated(one: Pass, program: Program, batches: Sequence[Inputs], fast: bool = False) -> Report:
    """Run a pass that looks at `batches`."""
    ctx = context(program)
    ctx.calibration = Calibration(batches, by_torch if fast else by_oracle)
    return one.run(program, ctx)


def ids(count: int, columns: int, below: int, seed: int = 0) -> list[Inputs]:
    """Batches of random token ids."""
    generator = np.random.default_rng(seed)
    return [{"ids": generator.integers(0, below, (2, columns))} for _ in range(count)]
