"""Is a region's kernel right? Its results on random data against the oracle, with states that hold tokens already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from irx.analysis.inputs import random_inputs
from irx.analysis.random_weights import bind_random_weights
from irx.analysis.reference import evaluate
from irx.backends.regions.slots import Placed
from irx.backends.regions.steps import Step, Steps
from irx.backends.triton.executors import Executor
from irx.backends.triton.plan import Plan
from irx.ir.graph import Graph, Weight
from irx.ir.program import Program
from irx.ir.regions import expanded
from irx.ir.types import TensorType, is_packed
from irx.ops.cache import KVArrays
from irx.rewrite.check import difference
from irx.runtime.arrays import given, run_graph
from irx.runtime.snapshot import tensor_of
from irx.runtime.store import WeightStore
from irx.target import Device

LIMITS = {"f32": 1e-5, "bf16": 2e-2, "f16": 4e-3}
PACKED = 1e-4
CODED = 0.15
"""Of states in codes: one that float32 rounds the other way is off by one, 2 / 15 of what a row of 4 bits reaches."""


def plan_of(program: Program, graph: Graph, step: Step, executor: Executor, device: Device) -> Plan:
    """A plan of one region with random weights, which `program` has then; frequencies of rope are no random numbers."""
    for node in step.site.body.nodes:
        table = step.site.actual(node.inputs[2]) if node.op.name == "rope" and node.inputs[2] is not None else None
        if isinstance(table, Weight):
            program.weights.bind(table.name, partial(_frequencies, int(str(table.shape[0]))))
    bind_random_weights(program.weights)
    made = Plan(Placed(graph), Steps(graph, [step], order=[step.site]), executor, device, {})
    made.bind(WeightStore(lambda weight: tensor_of(program.weights, weight), made.device))
    return made


def error(program: Program, graph: Graph, plan: Plan, sizes: Mapping[str, int], tokens: int = 0) -> float:
    """max|y - y0| / max|y0| of a region's tensors against the oracle; `tokens` are in its states before."""
    plain = expanded(graph)
    inputs = with_tokens(plain, random_inputs(plain, sizes), tokens)
    expected = evaluate(plain, inputs, sizes, program.weights)
    made = run_graph(plan, inputs, plan.device)
    pairs = zip(made, expected, strict=True)
    return max(
        (difference(np.asarray(y), np.asarray(y0)) for y, y0 in pairs if not isinstance(y0, KVArrays)), default=0
    )


def with_tokens(graph: Graph, inputs: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """The inputs with that many random tokens in every empty state, and positions behind them."""
    if not tokens:
        return dict(inputs)
    source = np.random.default_rng(1)
    made = dict(inputs)
    nodes = [node for node in graph.nodes if node.op.name in ("kv_append", "kv_attention")]
    places = {node.operand(name) for node in nodes for name in ("pos", "slots")}
    for value in graph.inputs:
        given = made[value.name]
        if isinstance(given, KVArrays):
            made[value.name] = _filled(given.grown(tokens), tokens, source)
        elif value in places:
            made[value.name] = np.asarray(given) + tokens
    return made


def _filled(state: KVArrays, tokens: int, source: np.random.Generator) -> KVArrays:
    keys, values = (source.standard_normal(array.shape) for array in (state.k, state.v))
    positions = np.broadcast_to(np.arange(tokens), state.positions.shape).copy()
    return replace(state, k=state.stored(keys), v=state.stored(values), positions=positions)


def _frequencies(pairs: int) -> np.ndarray:
    return np.float32(10000.0) ** -(np.arange(pairs, dtype=np.float32) / pairs)


def inputs_of(plan: Plan, graph: Graph, sizes: Mapping[str, int]) -> Sequence[Any]:
    """Random tensors for a call of the plan, where it runs; its states are empty."""
    plain = expanded(graph)
    arrays = random_inputs(plain, sizes)
    return [given(value, arrays[value.name], plan.device) for value in plan.inputs]


def limit_of(step: Step) -> float:
    """The largest error allowed: by the dtypes of the region's tensors and the format of its weights."""
    operands = (*step.site.operands, *step.site.results)
    floats = [LIMITS[v.dtype] for v in operands if isinstance(v.type, TensorType) and v.dtype in LIMITS]
    packed = [PACKED for v in operands if isinstance(v, Weight) and is_packed(v.dtype)]
    coded = [CODED for v in operands if not isinstance(v.type, TensorType) and v.type.code is not None]
    return max([*floats, *packed, *coded], default=LIMITS["f32"])
