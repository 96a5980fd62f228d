"""The time of one call of a graph as the sum of its regions, each timed alone with weights that are not in the cache.

A region is timed once, whatever the number of sites that share it, on so many copies of its weights and states that
they do not fit in caches: what is read from memory in the model is read from memory here. Results are kept on disk.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import cast

import torch

from irx.backends.regions.lowered import Choices
from irx.backends.regions.steps import Step, Steps
from irx.backends.tvm.codegen import compile_kernels
from irx.backends.tvm.kernel import Kernel
from irx.backends.tvm.rings import copies_of, ring_of, times
from irx.backends.tvm.steps import Lowering
from irx.cache import CacheKey, Store
from irx.ir.dims import evaluate
from irx.ir.graph import Graph
from irx.pipeline.backend import Latency
from irx.pipeline.latency import CAPACITY, CONTEXT, timed_sizes
from irx.target import Device, host_cpu

STEADY = 0.3  # a time whose noise is a larger share of it was disturbed, and is not kept for other processes
TURNS = 3  # of regions that are compared with each other
TRIES = 2  # so often is a region timed in one process while times are disturbed; the least of them counts

_disturbed: dict[CacheKey, list[Latency]] = {}


def latency(graph: Graph, device: Device, choices: Choices, context: int = CONTEXT) -> Latency:
    """One call of `graph` with a batch of one, behind `context` tokens."""
    sizes, regions = timed_sizes(graph, context), _regions(graph, choices)
    objects = compile_kernels([k for step, _ in regions for k in kernels_of(step, sizes)], device)
    return _sum([(count, _timing(step, sizes, objects)) for step, count in regions])


def latencies(graphs: Sequence[Graph], device: Device, choices: Choices, context: int = CONTEXT) -> list[Latency]:
    """As `latency` of several graphs, whatever is known of them: all their regions are timed now, in turns.

    What other programs take of the machine changes from minute to minute; this way it changes for all alike.
    """
    calls: list[list[tuple[CacheKey, int]]] = []
    regions: dict[CacheKey, tuple[Step, Mapping[str, int]]] = {}
    for graph in graphs:
        sizes, found = timed_sizes(graph, context), _regions(graph, choices)
        keys = [(_key(step, sizes), step, count) for step, count in found]
        regions |= {key: (step, sizes) for key, step, _ in keys}
        calls.append([(key, count) for key, _, count in keys])
    objects = compile_kernels([k for step, sizes in regions.values() for k in kernels_of(step, sizes)], device)
    timed = _in_turns(regions, objects)
    return [_sum([(count, timed[key]) for key, count in call]) for call in calls]


def _in_turns(
    regions: Mapping[CacheKey, tuple[Step, Mapping[str, int]]], objects: Mapping[str, bytes]
) -> dict[CacheKey, Latency]:
    """The median of what every region takes in each turn; it is what counts from here on."""
    found: dict[CacheKey, list[float]] = {key: [] for key in regions}
    for _ in range(TURNS):
        for key, (step, sizes) in regions.items():
            found[key].append(min(times(ring_of(step, sizes.get(CAPACITY, CONTEXT)), sizes, objects)))
    made = {}
    for key, seconds in found.items():
        middle = statistics.median(seconds)
        made[key] = Latency(middle, statistics.median(abs(one - middle) for one in seconds))
        _disturbed.pop(key, None)
        _save(key, made[key])
    return made


def _regions(graph: Graph, choices: Choices) -> list[tuple[Step, int]]:
    """Every region of a graph once, with the number of its sites."""
    steps = Lowering(choices).steps(graph).steps
    first = {step.site.body: step for step in reversed(steps)}
    return [(first[body], count) for body, count in Counter(step.site.body for step in steps).items()]


def _sum(timings: Sequence[tuple[int, Latency]]) -> Latency:
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
    key = _key(step, sizes)
    found = Store().load(key)
    if found is not None:
        return Latency(*json.loads(found["timing"]))
    tries = _disturbed.setdefault(key, [])
    if len(tries) < TRIES:
        tries.append(_timed(ring_of(step, sizes.get(CAPACITY, CONTEXT)), sizes, objects))
    made = min(tries, key=lambda one: one.seconds)
    if made.noise <= STEADY * made.seconds:
        _save(key, made)
    return made


def _save(key: CacheKey, made: Latency) -> None:
    Store().save(key, {"timing": json.dumps([made.seconds, made.noise]).encode()})


def _timed(ring: Steps, sizes: Mapping[str, int], objects: Mapping[str, bytes]) -> Latency:
    found = times(ring, sizes, objects)
    return Latency(min(found), statistics.median(found) - min(found))


def _key(step: Step, sizes: Mapping[str, int]) -> CacheKey:
    """What a time depends on: kernels and shapes, threads, and the machine."""
    types = ", ".join(str(value.type) for value in (*step.site.operands, *step.site.results))
    kernels = [kernel.symbol for kernel in kernels_of(step, sizes)]
    copies = copies_of(step, sizes.get(CAPACITY, CONTEXT))
    text = json.dumps([step.site.name, types, kernels, copies, sorted(sizes.items()), torch.get_num_threads()])
    host = host_cpu()
    machine = f"{host.title}, {host.cores} cores"
    return CacheKey("latency", hashlib.sha256(text.encode()).hexdigest(), machine)
