"""A region many times, so that what it reads of weights and states lies in no cache, run and timed alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from irx.analysis.footprint import state_bytes
from irx.backends.regions.sites import Site, add_sizes
from irx.backends.regions.slots import Placed
from irx.backends.regions.steps import Step, Steps
from irx.backends.tvm.plan import Plan
from irx.ir.blocks import FORMATS
from irx.ir.dims import evaluate
from irx.ir.graph import Graph, Value, Weight
from irx.ir.opdef import tensor_bytes
from irx.ir.regions import expanded
from irx.ir.types import KVType, TensorType, is_packed
from irx.ops.cache import kv_length
from irx.pipeline.latency import CAPACITY, CONTEXT
from irx.runtime.arena import WEIGHTS, copied
from irx.runtime.kv import empty_state
from irx.runtime.store import Stored, WeightStore
from irx.runtime.tensors import TORCH, Packed

RING = 64 << 20  # bytes of copies of one region's weights: more than caches hold
MOST_COPIES = 1000
FEW_COPIES = 64  # of weights so small that MOST_COPIES of them stay in caches, as they may in the model
MOST_BY_TORCH = 16  # of a region that torch runs: a call takes long, and writes more than it reads
REPEAT = 9
LONGEST = 0.2  # seconds after which no further run starts


def times(ring: Steps, sizes: Mapping[str, int], objects: Mapping[str, bytes]) -> list[float]:
    """Seconds of one region, from several runs over a ring of it."""
    plan = Plan(Placed(ring.graph), ring, objects)
    plan.bind(Zeros({w.name: w.tensor for w in _weights(ring)}))
    inputs = inputs_of(ring.graph, sizes)
    plan.profile(*inputs)
    found: list[float] = []
    end = time.monotonic() + LONGEST
    while len(found) < 2 or (len(found) < REPEAT and time.monotonic() < end):
        found.append(sum(timed.seconds for timed in plan.profile(*inputs)) / len(ring.steps))
    return found


def ring_of(step: Step, context: int = CONTEXT) -> Steps:
    """The region several times, each with weights and states of its own."""
    graph, node = Graph("ring"), step.site.node
    operands = list(dict.fromkeys(step.site.operands))
    shared: dict[Value, Value] = {v: graph.add_input(v.name, v.type) for v in operands if not _read_once(v)}
    ring = Steps(graph)
    for number in range(copies_of(step, context)):
        mapping = dict(shared)
        for value in operands:
            if isinstance(value, Weight):
                mapping[value] = Weight(f"{value.name}/{number}", value.type)
            elif _read_once(value):
                mapping[value] = graph.add_input(f"{value.name}_{number}", value.type)
        made = graph.add_copy(node, mapping)
        site = Site(made, step.site.body, tuple(mapping[value] for value in step.site.operands), made.outputs)
        ring.order.append(site)
        ring.steps.append(Step(site, step.lowered, step.reason))
    add_sizes(graph)
    return ring


def _read_once(value: Value) -> bool:
    """True for what a step of the model reads in one place: weights and states."""
    return isinstance(value, Weight) or isinstance(value.type, KVType)


def copies_of(step: Step, context: int = CONTEXT) -> int:
    """How many times a ring holds the region."""
    size = sum(_bytes(value.tensor) for value in step.site.operands if isinstance(value, Weight))
    size += sum(state_bytes(v.type, context) for v in step.site.operands if isinstance(v.type, KVType))
    if not size:
        return 1
    most = MOST_BY_TORCH if step.lowered is None else MOST_COPIES if MOST_COPIES * size >= RING else FEW_COPIES
    return min(most, max(1, RING // size))


def _weights(ring: Steps) -> list[Weight]:
    return [value for site in ring.order for value in site.operands if isinstance(value, Weight)]


class Zeros(WeightStore):
    """Weights of zeros, by name: kernels take as long for them as for any other numbers.

    What is packed of weights that look alike is packed once, and copied to memory of its own for the others.
    """

    def __init__(self, types: Mapping[str, TensorType]) -> None:
        super().__init__(lambda name: _zeros(types[name]), torch.device("cpu"))
        self._types = types
        self._alike: dict[int, Hashable] = {}
        self._first: dict[Hashable, tuple[Tensor, ...]] = {}

    def number(self, description: Hashable) -> int:
        """A short name for how a constant is made."""
        number = super().number(description)
        if isinstance(description, tuple) and description[0] == "layout":
            _, layout, names = description
            self._alike[number] = layout, tuple(self._types[name] for name in names)
        return number

    def derived(self, number: int, make: Callable[[], Any]) -> Any:
        """The constant of that number; of packed weights a copy of the first that look like them."""
        alike = self._alike.get(number)
        if alike is None or self.kept(number) is not None:
            return super().derived(number, make)
        known = self._first.get(alike)
        made = super().derived(
            number, make if known is None else lambda: tuple(copied(part, WEIGHTS) for part in known)
        )
        self._first.setdefault(alike, made)
        return made


def _zeros(kind: TensorType) -> Stored:
    shape = [int(str(size)) for size in kind.shape]
    if is_packed(kind.dtype):
        return Packed(torch.zeros(FORMATS[kind.dtype].packed_shape(shape), dtype=torch.uint8), kind.dtype)
    return torch.zeros(shape, dtype=TORCH[kind.dtype])


def inputs_of(graph: Graph, sizes: Mapping[str, int]) -> list[object]:
    """Inputs of a region, or of a ring of it: states that hold what their types leave of the context, ones, slots."""
    plain, held = expanded(graph), _held(graph, sizes)
    return [_input(value, sizes, plain, held) for value in graph.inputs]


def _input(value: Value, sizes: Mapping[str, int], plain: Graph, held: int) -> object:
    """An input of a region, whose fusions `plain` has opened: integers are the last slots, or the first row."""
    if isinstance(value.type, KVType):
        state = empty_state(value.type, sizes.get("B", 1), torch.device("cpu"))
        state.reserve(held + CONTEXT, held + CONTEXT)
        state.lengths = (held,) * sizes.get("B", 1)
        return state
    shape = [evaluate(dim, sizes) for dim in value.shape]
    tensor = torch.ones(shape, dtype=TORCH[value.dtype])
    if value.dtype != "i64":
        return tensor
    same = next(other for other in plain.inputs if other.name == value.name)
    chooses = any(node.op.name.endswith("_tokens") or node.op.name == "embedding" for node in plain.users(same))
    if chooses:
        return tensor * 0
    tokens = shape[-1] if shape else 1
    return (tensor * max(0, held - tokens) + torch.arange(tokens)).reshape(shape)


def _held(graph: Graph, sizes: Mapping[str, int]) -> int:
    """The tokens in the states of a region: fewer than there were, where some go. Rings are about to close."""
    tokens = {CAPACITY: sizes.get(CAPACITY, CONTEXT)}
    states = {value.type for value in graph.inputs if isinstance(value.type, KVType)}
    held = [evaluate(kv_length(kv), tokens) for kv in states]
    return min([tokens[CAPACITY], *held, *(kv.window - 1 for kv in states if kv.window is not None)])


def _bytes(tensor: TensorType) -> int:
    return int(str(tensor_bytes(tensor)))
