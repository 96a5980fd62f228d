"""Tuning of kernels: which tasks a graph has, and how one candidate is tried, with a GPU or without one.

With the device here a candidate is the whole region: compared with the oracle on random data and timed, with the
caches emptied before every run. Elsewhere its kernels are compiled for the device, refused where they spill or do not
fit, their numbers are checked in the interpreter on a region cut down to a few tiles, and the time is the model's.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch

import irx.ops  # noqa: F401  declares the ops that a text names
from irx import __version__
from irx.analysis.occupancy import Block
from irx.backends.regions.asked import Asked, Chooser, Knobs, Tunables
from irx.backends.regions.lowered import Choices
from irx.backends.regions.steps import Lowering, Step
from irx.backends.triton.checking import error, inputs_of, limit_of, plan_of
from irx.backends.triton.compiling import compile_kernels, triton_version, try_kernels
from irx.backends.triton.executors import Gpu, Interpreter
from irx.backends.triton.kernel import Kernel
from irx.backends.triton.knobs import MODEL, tasks_for
from irx.backends.triton.modelling import modelled, picks, seconds_of
from irx.backends.triton.resources import read_usage
from irx.backends.triton.rules import RULES
from irx.backends.triton.usage import Usage
from irx.cache import CacheKey, Store
from irx.errors import IRXError
from irx.ir.dims import evaluate as number
from irx.ir.graph import Graph
from irx.ir.parser import parse
from irx.ir.program import Program
from irx.target import Device, find_device
from irx.tuning import Outcome, Schedule, Space, Task

PICKS = 3  # schedules that the model proposes
LIMIT = 60.0  # seconds that one candidate may compile
TILES = 2  # of the result that a region which is checked in the interpreter has, and a rest
SMALL_K = 512  # columns of x that it has at most
REPEAT = 25
FLUSH = 256 << 20  # bytes, more than any second-level cache


def tasks(program: Program, graph: Graph, device: Device) -> list[Task]:
    """Everything that can be tuned in a graph, each kernel once, with the model's picks."""
    made = Tunables(_lowering(device), tasks_for(device), {"device": device.name}).tasks(program, graph)
    found = [task for task in made if not _chooses(task)]
    return [replace(t, picks=_picks(t, device), model=MODEL) if modelled(t.key.template) else t for t in found]


def _chooses(task: Task) -> bool:
    """True for a product that is chosen from: it has the schedule of the product alone, which is easier to check."""
    return task.key.template in ("matvec", "gemm") and "irx.topk(" in task.args["program"]


def _lowering(device: Device) -> Callable[[Chooser], Lowering]:
    """The rules with a way to choose schedules."""
    return lambda chooser: Lowering(RULES, Choices(device, chooser))


def run(args: dict[str, Any], schedule: Schedule) -> Outcome:
    """Build, check and time one candidate on this machine's GPU: a runner of `irx.tuning`."""
    device, sizes = find_device(args["device"]), args["sizes"]
    program, graph, step = _candidate(args["program"], device, _only(args, schedule))
    kernels = _kernels(step, sizes)
    binaries = compile_kernels(kernels, device)
    plan = plan_of(program, graph, step, Gpu({k.symbol: k for k in kernels}, binaries, device), device)
    off = error(program, graph, plan, sizes)
    return Outcome(tuple(_times(plan, graph, sizes)), off, limit_of(step))


def model(args: dict[str, Any], schedule: Schedule) -> Outcome:
    """Compile one candidate for a device that is not here, check its numbers, and give the time of the model."""
    device, sizes = find_device(args["device"]), args["sizes"]
    _, _, step = _candidate(args["program"], device, _only(args, schedule))
    made, failures = try_kernels(_kernels(step, sizes), device, LIMIT)
    if failures:
        return Outcome(failure="; ".join(failures.values()))
    usages = {s: read_usage(b.data, s, device, shared=b.shared, warps=b.warps) for s, b in made.items()}
    refusal = next((reason for usage in usages.values() if (reason := _refusal(usage, device))), "")
    if refusal:
        return Outcome(failure=refusal)
    off, limit = _checked(args, schedule, device)
    block = usages[_kernels(step, sizes)[-1].symbol].block
    return Outcome((_seconds(args, schedule, device, step.site.body, block),), off, limit)


def _only(args: Mapping[str, Any], schedule: Schedule) -> Asked:
    return Asked({}, (args["template"], args["bucket"]), schedule)


def _candidate(text: str, device: Device, chooser: Chooser) -> tuple[Program, Graph, Step]:
    """The region of a text with its kernels. Raises IRXError."""
    program = parse(text)
    (graph,) = program.graphs.values()
    (step,) = _lowering(device)(chooser).steps(graph).steps
    if step.lowered is None:
        raise IRXError(step.reason)
    return program, graph, step


def _kernels(step: Step, sizes: Mapping[str, int]) -> list[Kernel]:
    """The kernels of a region that serve these sizes."""
    assert step.lowered is not None
    case = next(c for c in step.lowered.cases if c.most is None or number(c.size, sizes) <= c.most)
    return [call.kernel for call in case.calls if isinstance(call.kernel, Kernel)]


def _refusal(usage: Usage, device: Device) -> str:
    if usage.spills:
        return f"it spills: {usage.spills} instructions"
    return usage.refusal(device) or ""


# --- by the model ---------------------------------------------------------------------------------------------------


def _seconds(args: Mapping[str, Any], knobs: Knobs, device: Device, body: Graph, block: Block | None = None) -> float:
    return seconds_of(args["template"], body, knobs, args["sizes"], device, block)


def _picks(task: Task, device: Device) -> tuple[Schedule, ...]:
    """What the model thinks faster than the default, before anything is compiled."""
    _, _, step = _candidate(task.args["program"], device, Asked({}))
    space = _calm(task.space)

    def near(knobs: Knobs) -> list[Knobs]:
        return list(space.neighbours(Schedule(knobs)))

    def seconds(knobs: Knobs) -> float:
        return _seconds(task.args, knobs, device, step.site.body)

    found = picks(task.default(), near, seconds, PICKS)
    return tuple(Schedule(knobs) for knobs in found)


def _calm(space: Space) -> Space:
    """The space without what the model cannot tell from the rest: only a device can."""
    kept = tuple(
        replace(knob, values=(knob.default,)) if knob.name in ("persistent", "stripe") else knob for knob in space.knobs
    )
    return Space(kept, space.fits)


def _checked(args: Mapping[str, Any], schedule: Schedule, device: Device) -> tuple[float, float]:
    """(error, allowed) of the schedule in the interpreter, on a region of few tiles; kept, as devices share it."""
    text, sizes = cut_down(args["program"], args["template"], schedule), _few(args)
    program, graph, step = _candidate(text, device, _always(args["template"], schedule))
    symbols = [kernel.symbol for kernel in _kernels(step, sizes)]
    source = hashlib.sha256(json.dumps([text, symbols, sizes]).encode()).hexdigest()
    store, key = Store(), CacheKey("interpreted", source, versions=(("irx", __version__), ("triton", triton_version())))
    found = store.load(key)
    if found is None:
        plan = plan_of(program, graph, step, Interpreter(), device)
        tokens = 3 * int(schedule["tokens"]) + 5 if args["template"] == "attention_decode" else 0
        off = error(program, graph, plan, sizes, tokens)
        found = {"error": json.dumps(float(off)).encode()}
        store.save(key, found)
    return float(json.loads(found["error"])), limit_of(step)


def _always(template: str, schedule: Schedule) -> Chooser:
    def choose(asked: str, bucket: str, defaults: Knobs) -> Knobs:
        return {**defaults, **schedule} if asked == template else defaults

    return choose


def _few(args: Mapping[str, Any]) -> dict[str, int]:
    """Rows that the same case serves, as few as show whether it is right."""
    if args["template"] in ("matvec", "gemm"):
        return {name: min(size, 21) if size > 16 else min(size, 11) for name, size in args["sizes"].items()}
    return {name: min(size, 2 if name == "B" else 40) for name, size in args["sizes"].items()}


def cut_down(text: str, template: str, schedule: Mapping[str, Any]) -> str:
    """The text of a region around a linear with fewer columns, `TILES` tiles and a rest; any other as it is."""
    if "columns" not in schedule:
        return text
    weight = re.search(r"weight \$\S+ : \w+\[(\d+), (\d+)\](?![\s\S]*weight \$\S+ : \w+\[\d+, \d+\])", text)
    if weight is None:
        return text
    n, k = int(weight[1]), int(weight[2])
    most = TILES * int(schedule["columns"]) + 32
    sizes = {n: min(n, max(most, SMALL_K)), k: min(k, max(most, SMALL_K))} if n == k else {n: min(n, most)}
    sizes |= {} if n == k else {k: min(k, SMALL_K)}
    return re.sub(r"(?<=[\[ ])\d+(?=[\],])", lambda found: str(sizes.get(int(found[0]), found[0])), text)


# --- on a device ----------------------------------------------------------------------------------------------------


def _times(plan: Any, graph: Graph, sizes: Mapping[str, int]) -> list[float]:
    """Seconds of one run of the region, recorded as a CUDA graph, with nothing of it in the caches."""
    given = inputs_of(plan, graph, sizes)
    bound = plan.prepared(given)
    outputs = bound.new_outputs()
    entered = bound.enter(given)
    bound.launch(entered, outputs)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        bound.launch(entered, outputs)
    found = []
    for _ in range(REPEAT):
        _dirt().zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        recorded.replay()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end) * 1e-3)
    return found


@cache
def _dirt() -> torch.Tensor:
    return torch.empty(FLUSH, dtype=torch.uint8, device="cuda")
