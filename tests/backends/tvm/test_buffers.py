"""Buffers: random graphs, with random regions left to torch; no two values that live at once share a byte."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import irx.ops  # noqa: F401  declares the ops
from irx.backends.regions.buffers import plan_buffers
from irx.backends.regions.lowered import Choices, default_schedule
from irx.backends.regions.slots import Placed
from irx.backends.regions.steps import Step, Steps
from irx.backends.torch.plan import Plan as TorchPlan
from irx.backends.tvm.codegen import compile_kernels, missing
from irx.backends.tvm.plan import Plan
from irx.backends.tvm.steps import Lowering
from irx.ir.dims import evaluate, symbol
from irx.ir.graph import Graph, Value
from irx.ir.types import TensorType
from irx.runtime.store import WeightStore
from irx.target import host_cpu

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

B = symbol("B")
SHAPES = ((B, 6), (2 * B, 3))
BINARY, UNARY = ("add", "mul"), ("tanh", "neg")
COMMON = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def apply(graph: Graph, op: str, values: list[Value]) -> Value:
    """One op on values of one shape; `turn` gives the other shape."""
    if op == "turn":
        target = SHAPES[1 - SHAPES.index(values[0].shape)]
        return graph.add("reshape", [values[0]], {"shape": target}).output
    return graph.add(op, values[: 2 if op in BINARY else 1], {}).output


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Chains and diamonds of elementwise ops and views; some inputs and repeated values are outputs too."""
    graph = Graph("forward")
    values = [graph.add_input(f"x{i}", TensorType(shape, "f32")) for i, shape in enumerate(SHAPES)]
    for _ in range(draw(st.integers(1, 14))):
        first = draw(st.sampled_from(values))
        same = [value for value in values if value.shape == first.shape]
        values.append(
            apply(graph, draw(st.sampled_from([*BINARY, *UNARY, "turn"])), [first, draw(st.sampled_from(same))])
        )
    outputs = draw(st.lists(st.sampled_from(values), min_size=1, max_size=4))
    graph.set_outputs({f"y{i}": value for i, value in enumerate(outputs)})
    return graph


def lowering() -> Lowering:
    return Lowering(Choices(host_cpu(), default_schedule))


@cache
def objects() -> dict[str, bytes]:
    """The kernels of every graph that can be drawn: one of each op and shape, of two values or one used twice."""
    graph = Graph("all")
    made = []
    for i, shape in enumerate(SHAPES):
        x, y = (graph.add_input(f"{name}{i}", TensorType(shape, "f32")) for name in "xy")
        made += [apply(graph, op, values) for op in BINARY for values in ([x, y], [x, x])]
        made += [apply(graph, op, [x]) for op in UNARY]
    graph.set_outputs({f"y{i}": value for i, value in enumerate(made)})
    steps = lowering().steps(graph).steps
    return compile_kernels([k for step in steps if step.lowered is not None for k in step.lowered.kernels], host_cpu())


def run(plan: Callable[..., list[torch.Tensor]], batch: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return plan(*(torch.randn(evaluate(a, {"B": batch}), b, generator=generator) for a, b in SHAPES))


@COMMON
@given(st.data())
def test_results_are_those_of_torch_whatever_is_left_to_torch(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    steps = lowering().steps(graph)
    left = data.draw(st.lists(st.booleans(), min_size=len(steps.steps), max_size=len(steps.steps)))
    steps.steps = [Step(s.site, None, "drawn") if out else s for s, out in zip(steps.steps, left, strict=True)]
    assert all(step.lowered is not None or step.reason == "drawn" for step in steps.steps)
    plan, reference = Plan(Placed(graph), steps, objects()), TorchPlan(graph, torch.device("cpu"))
    for one in (plan, reference):
        one.bind(WeightStore(lambda name: torch.empty(0), torch.device("cpu")))
    for batch in (1, 3, 2):
        for found, expected in zip(run(plan, batch), run(reference, batch), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@COMMON
@given(graphs(), st.integers(1, 9))
def test_values_that_live_at_once_do_not_overlap(graph: Graph, batch: int) -> None:
    steps = lowering().steps(graph)
    buffers = plan_buffers(graph, steps.order, steps.constants)
    offsets, end = buffers.offsets(lambda dim: evaluate(dim, {"B": batch}))
    extents = {}
    for value, slot in buffers.slots.items():
        size = evaluate(value.tensor.elements, {"B": batch}) * 4
        extents[value] = (offsets[slot], offsets[slot] + size)
        assert offsets[slot] % 64 == 0
        assert offsets[slot] + size + 64 <= end
    lives = lifetimes(graph, steps, buffers.root)
    for a, b in ((a, b) for a in extents for b in extents if a is not b):
        if lives[a][0] <= lives[b][1] and lives[b][0] <= lives[a][1]:
            assert extents[a][1] <= extents[b][0] or extents[b][1] <= extents[a][0], (a.name, b.name)


def lifetimes(graph: Graph, steps: Steps, root: dict[Value, Value]) -> dict[Value, tuple[int, int]]:
    """The first and last step that touches a buffer; what is copied into outputs lives to the end."""
    touched: dict[Value, list[int]] = {}
    for i, site in enumerate(steps.order):
        for value in (*site.operands, *site.results):
            touched.setdefault(root[value], []).append(i)
    for value in graph.outputs:
        touched.setdefault(root[value], []).append(len(steps.order))
    return {value: (min(found), max(found)) for value, found in touched.items()}


def test_a_chain_needs_two_buffers_whatever_its_length() -> None:
    graph = Graph("forward")
    value = graph.add_input("x", TensorType(SHAPES[0], "f32"))
    for _ in range(20):
        value = graph.add("tanh", [value]).output
    graph.set_outputs({"y": value})
    steps = lowering().steps(graph)
    buffers = plan_buffers(graph, steps.order, steps.constants)
    assert len(buffers.slots) == 19, "the last one is written straight into the output"
    assert len(buffers.sizes) == 2
