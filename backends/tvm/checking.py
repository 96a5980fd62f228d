"""Are a region's kernels right? Every case of them runs once on random data, against the oracle.

A kernel whose result is off is refused by name before it reaches anybody. What has been found right is noted in the
cache, so that a kernel is checked once on a machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from irx import __version__
from irx.analysis.inputs import random_inputs
from irx.analysis.random_weights import bind_random_weights
from irx.analysis.reference import evaluate_values
from irx.backends.regions.lowered import Case
from irx.backends.regions.sites import Site, alone
from irx.backends.regions.slots import Placed
from irx.backends.regions.steps import Step, Steps
from irx.backends.tvm.plan import Plan
from irx.cache import CacheKey, Store
from irx.errors import IRXError
from irx.ir.dims import evaluate as number
from irx.ir.dims import names
from irx.ir.excerpt import excerpt
from irx.ir.graph import Graph, Value
from irx.ir.printer import print_program
from irx.ir.program import Program
from irx.ir.regions import expanded
from irx.ir.sizes import used_sizes
from irx.ir.types import TensorType, Type, is_packed
from irx.ops.cache import KVArrays
from irx.rewrite.check import difference
from irx.runtime.arrays import run_graph
from irx.runtime.snapshot import tensor_of
from irx.runtime.store import WeightStore

ROWS = (1, 2, 3, 7, 19)
"""Values of a named size that are tried: every case is met by one of them, the last by more than a block of rows."""
LIMITS = {"f32": 1e-5, "bf16": 2e-2, "f16": 4e-3}
PACKED = 1e-4
INSIDE = 0.1  # of a limit: what rounding to a dtype between two nodes does, where an element goes the other way
STORED = {"bf16": 2e-2, "f16": 4e-3, "i8": 2e-2, "token8": 2e-2, "token4": 0.15}
"""The oracle keeps keys and values as they are, kernels as the state's dtype does. Codes are the same in both, but for
those that float32 rounds the other way, which are off by one: 2 / 15 of what a row reaches, with 4 bits."""


def wrong(program: Program, steps: Steps, objects: Mapping[str, bytes]) -> dict[str, str]:
    """Kernels whose results are off, by symbol, each with what was measured."""
    store = Store()
    found: dict[str, str] = {}
    for step in {step.site.body: step for step in steps.steps if step.lowered is not None}.values():
        graph, site = alone(step.site)
        own = excerpt(program, graph)
        text = print_program(own)
        key = _key(step, text)
        if store.load(key) is not None:
            continue
        reason = _reason(own, graph, site, step, objects)
        if reason is None:
            store.save(key, {"checked": b"1"})
            continue
        assert step.lowered is not None
        found |= {kernel.symbol: reason for kernel in step.lowered.kernels}
    return found


def error(program: Program, graph: Graph, plan: Plan, sizes: Mapping[str, int]) -> float:
    """max|y - y0| / max|y0| of a region against the oracle, random data at these sizes; states included.

    `program` holds the region alone; its weights become random ones. Indices of the largest elements stand for those
    elements: which of two nearly equal ones comes first is a matter of rounding.
    """
    plain = expanded(graph)
    inputs = random_inputs(plain, sizes)
    chosen = _chosen(plain)
    targets = [*plain.outputs, *(x for x, _ in chosen.values())]
    expected = evaluate_values(plain, targets, sizes, program.weights, {v: inputs[v.name] for v in plain.inputs})
    made = run_graph(plan, inputs, torch.device("cpu"))
    for (index, (_, axis)), x in zip(chosen.items(), expected[len(plain.outputs) :], strict=True):
        made[index], expected[index] = _elements(x, made[index], axis), _elements(x, expected[index], axis)
    both = zip(made, expected[: len(plain.outputs)], strict=True)
    pairs = [pair for y, y0 in both for pair in _arrays(y, y0)]
    return max((difference(np.asarray(y), np.asarray(y0)) for y, y0 in pairs), default=0.0)


def bound_plan(program: Program, graph: Graph, site: Site, step: Step, objects: Mapping[str, bytes]) -> Plan:
    """A plan of one region with random weights, which `program` has then; graph and site as `alone` gives them."""
    bind_random_weights(program.weights)
    plan = Plan(Placed(graph), Steps(graph, [Step(site, step.lowered, step.reason)], order=[site]), objects)
    plan.bind(WeightStore(lambda weight: tensor_of(program.weights, weight), torch.device("cpu")))
    return plan


def limit_of(step: Step) -> float:
    """The largest error allowed: by the dtypes of what goes in and comes out, and of what is rounded in between, and
    by the formats of the weights.
    """
    types = [v.type for v in (*step.site.operands, *step.site.results)]
    inner = [value.type for node in step.site.body.nodes for value in node.outputs]
    inside = [INSIDE * LIMITS.get(type.dtype, 0.0) for type in inner if isinstance(type, TensorType)]
    return max((*(_limit(type) for type in types), *inside), default=1e-5)


def _limit(type: Type) -> float:
    if not isinstance(type, TensorType):
        return STORED.get(type.storage, STORED.get(type.dtype, 1e-5))  # of codes with a tail, the tail's
    return PACKED if is_packed(type.dtype) else LIMITS.get(type.dtype, 1e-5)


def _reason(program: Program, graph: Graph, site: Site, step: Step, objects: Mapping[str, bytes]) -> str | None:
    """Why the kernels are wrong, None where every case is right; a region without a reference is not judged."""
    assert step.lowered is not None
    try:
        plan = bound_plan(program, graph, site, step, objects)
        for sizes in _sizes(program, graph, step.lowered.cases):
            found = error(program, graph, plan, sizes)
            if not found <= limit_of(step):
                return f"its result is off by {found:.2g} at {sizes}, and {limit_of(step):g} is allowed"
    except IRXError as failure:
        return f"it cannot be checked: {failure}"
    return None


def _sizes(program: Program, graph: Graph, cases: Sequence[Case]) -> Iterator[dict[str, int]]:
    """Sizes so that every case is met once."""
    left = set(range(len(cases)))
    used = list(used_sizes(graph))
    deciding = {name for case in cases for name in names(case.size)} & set(used)
    varied = next((name for name in ("S", "R", "T", *used) if name in deciding), None)
    for rows in ROWS:
        sizes = {name: rows if name == varied or varied is None else 1 for name in used}
        sizes = {name: _within(program, name, value) for name, value in sizes.items()}
        met = next(i for i, c in enumerate(cases) if c.most is None or number(c.size, sizes) <= c.most)
        if met in left:
            left.discard(met)
            yield sizes


def _within(program: Program, name: str, value: int) -> int:
    range = program.sizes.get(name)
    if range is None:
        return value
    return min(max(value, range.low), range.high if range.high is not None else value)


def _chosen(graph: Graph) -> dict[int, tuple[Value, int]]:
    """The outputs that are indices of a `topk`, each with what they were chosen from and the axis."""
    found: dict[int, tuple[Value, int]] = {}
    for index, value in enumerate(graph.outputs):
        node = value.producer
        if node is not None and node.op.name == "topk" and value is node.outputs[1]:
            x, axis = node.inputs[0], node.attr("axis")
            assert x is not None and isinstance(axis, int)
            found[index] = x, axis
    return found


def _elements(x: Any, indices: Any, axis: int) -> Any:
    """The elements at these indices along an axis; nothing but nan where they are none, or one stands there twice."""
    indices, size = np.asarray(indices), x.shape[axis]
    ordered = np.sort(indices, axis)
    if ((indices < 0) | (indices >= size)).any() or (np.diff(ordered, axis=axis) == 0).any():
        return np.full(indices.shape, np.nan)
    return np.take_along_axis(x, indices, axis)


def _arrays(made: Any, expected: Any) -> list[tuple[Any, Any]]:
    """Pairs of arrays to compare: of states the keys and values of all tokens."""
    if not isinstance(expected, KVArrays):
        return [(made, expected)]
    return [(_tokens(made, part), _tokens(expected, part)) for part in ("k", "v")]


def _tokens(state: KVArrays, part: str) -> Any:
    """Keys or values of the tokens in order of position, [rows, heads, tokens, elements], others left out."""
    array, positions = getattr(state, part), state.positions
    order = np.argsort(np.where(positions < 0, np.iinfo(np.int64).max, positions), axis=2, kind="stable")
    kept = int((positions >= 0).sum(axis=2).max(initial=0))
    return np.take_along_axis(array, order[..., None], axis=2)[:, :, :kept]


def _key(step: Step, text: str) -> CacheKey:
    assert step.lowered is not None
    symbols = [kernel.symbol for kernel in step.lowered.kernels]
    source = hashlib.sha256(json.dumps([text, symbols]).encode()).hexdigest()
    return CacheKey("checked", source, versions=(("irx", __version__),))
