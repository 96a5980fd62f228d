"""The time of one call of a graph as the sum of its regions, each timed alone with weights that are not in the cache.

A region is timed once, whatever the number of sites that share it, on so many copies of its weights and states that
they do not fit in caches: what is read from memory in the model is read from memory here. Results are kept on disk.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from irx.analysis.footprint import state_bytes
from irx.backends.regions.lowered import Choices
from irx.backends.regions.sites import Site, add_sizes
from irx.backends.regions.slots import Placed
from irx.backends.regions.steps import Step, Steps
from irx.backends.tvm.codegen import compile_kernels
from irx.backends.tvm.kernel import Kernel
from irx.backends.tvm.plan import Plan
from irx.backends.tvm.steps import Lowering
from irx.cache import CacheKey, Store
from irx.ir.blocks import FORMATS
from irx.ir.dims import evaluate
from irx.ir.graph import Graph, Value, Weight
from irx.ir.opdef import tensor_bytes
from irx.ir.regions import expanded
from irx.ir.types import KVType, TensorType, is_packed
from irx.ops.cache import kv_length
from irx.pipeline.backend import Latency
from irx.pipeline.latency import CAPACITY, CONTEXT, timed_sizes
from irx.runtime.kv import empty_state
from irx.runtime.store import Stored, WeightStore
from irx.runtime.tensors import TORCH, Packed
from irx.target import Device, host_cpu

RING = 64 << 20  # bytes of copies of one region's weights: more than caches hold
MOST_COPIES = 1000
FEW_COPIES = 64  # of weights so small that MOST_COPIES of them stay in caches, as they may in the model
MOST_BY_TORCH = 16  # of a region that torch runs: a call takes long, and writes more than it reads
REPEAT = 9
LONGEST = 0.2  # seconds after which no further run starts
STEADY = 0.3  # a time whose noise is a larger share of it was disturbed, and is not kept for other processes
TRIES = 2  # so often is a region timed in one process while times are disturbed; the least of them counts

_disturbed: dict[CacheKey, list[Latency]] = {}


def latency(graph: Graph, device: Device, choices: Choices, context: int = CONTEXT) -> Latency:
    """One call of `graph` with a batch of one, behind `context` tokens."""
    steps = Lowering(choices).steps(graph)
    counts = Counter(step.site.body for step in steps.steps)
    first = {step.site.body: step for step in reversed(steps.steps)}
    sizes = timed_sizes(graph, context)
    objects = compile_kernels([k for step in first.values() for k in kernels_of(step, sizes)], device)
    timings = [(count, _timing(first[body], sizes, objects)) for body, count in counts.items()]
    seconds = sum(count * timing.seconds for count, timing in timings)
    return Latency(seconds, sum((count * timing.noise) ** 2 for count, timing in timings) ** 0.5)


def kernels_of(step: Step, sizes: Mapping[str, int]) -> list[Kernel]:
    """The kernels of a region that serve these sizes."""
    if step.lowered is None:
        return []
    case = next(c for c in step.lowered.cases if c.most is None or evaluate(c.size, sizes) <= c.most)
    return [cast(Kernel, call.kernel) for call in case.calls]


def _timing(step: Step, sizes: Mapping[str, int], objects: Mapping[str, bytes]) -> Latency:
    """One region, alone; from the cache where it was timed on this machine before, undisturbed."""
    store, key = Store(), _key(step, sizes)
    found = store.load(key)
    if found is not None:
        return Latency(*json.loads(found["timing"]))
    tries = _disturbed.setdefault(key, [])
    if len(tries) < TRIES:
        tries.append(_timed(ring_of(step, sizes.get(CAPACITY, CONTEXT)), sizes, objects))
    made = min(tries, key=lambda one: one.seconds)
    if made.noise <= STEADY * made.seconds:
        store.save(key, {"timing": json.dumps([made.seconds, made.noise]).encode()})
    return made


def _timed(ring: Steps, sizes: Mapping[str, int], objects: Mapping[str, bytes]) -> Latency:
    found = times(ring, sizes, objects)
    return Latency(min(found), statistics.median(found) - min(found))


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


def _key(step: Step, sizes: Mapping[str, int]) -> CacheKey:
    """What a time depends on: kernels and shapes, threads, and the machine."""
    types = ", ".join(str(value.type) for value in (*step.site.operands, *step.site.results))
    kernels = [kernel.symbol for kernel in kernels_of(step, sizes)]
    copies = copies_of(step, sizes.get(CAPACITY, CONTEXT))
    text = json.dumps([step.site.name, types, kernels, copies, sorted(sizes.items()), torch.get_num_threads()])
    host = host_cpu()
    machine = f"{host.title}, {host.cores} cores"
    return CacheKey("latency", hashlib.sha256(text.encode()).hexdigest(), machine)


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
        made = super().derived(number, make if known is None else lambda: tuple(part.clone() for part in known))
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
