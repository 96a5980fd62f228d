"""Tuning of kernels: which tasks a graph has, and the runner that tries one candidate in a process of its own.

A candidate is a whole region built with the schedule: its result is compared with the oracle on random data, and its
time is that of the region with weights that are not in the cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

import irx.ops  # noqa: F401  declares the ops that a text names
from irx.backends.regions.lowered import Case, Choices, Lowered, default_schedule
from irx.backends.regions.sites import alone
from irx.backends.regions.steps import Step
from irx.backends.tvm.checking import bound_plan, error, limit_of
from irx.backends.tvm.codegen import compile_kernels
from irx.backends.tvm.knobs import task
from irx.backends.tvm.measure import kernels_of, ring_of, times
from irx.backends.tvm.steps import Lowering
from irx.ir.excerpt import excerpt
from irx.ir.graph import Graph
from irx.ir.parser import parse
from irx.ir.printer import print_program
from irx.ir.program import Program
from irx.ir.sizes import used_sizes
from irx.target import Device, Target
from irx.tuning import Choice, Outcome, Schedule, Task

MANY = 128  # rows that stand for any number above the last limit


@dataclass
class _Asked:
    """Records what templates ask schedules for, and gives one of them another choice."""

    asked: dict[tuple[str, str], Mapping[str, Choice]]
    other: tuple[str, str] | None = None
    knobs: Mapping[str, Choice] | None = None

    def __call__(self, template: str, bucket: str, defaults: Mapping[str, Choice]) -> Mapping[str, Choice]:
        self.asked.setdefault((template, bucket), defaults)
        return {**defaults, **(self.knobs or {})} if (template, bucket) == self.other else defaults


def tasks(program: Program, graph: Graph, device: Device) -> list[Task]:
    """Everything that can be tuned in a graph, each kernel once."""
    steps = Lowering(Choices(device, default_schedule)).steps(graph).steps
    uses = Counter(step.site.body for step in steps)
    first = {step.site.body: step for step in reversed(steps) if step.lowered is not None}
    found: dict[str, Task] = {}
    for body, step in first.items():
        for made in _tasks_of(program, step, uses[body], device):
            found.setdefault(str(made.key), made)
    return list(found.values())


def run(args: dict[str, Any], schedule: Schedule) -> Outcome:
    """Build, check and time one candidate: a runner of `irx.tuning`."""
    program = parse(args["program"])
    (graph,) = program.graphs.values()
    torch.set_num_threads(args["threads"])
    chosen = _Asked({}, (args["template"], args["bucket"]), schedule)
    device = Target.parse(args["device"], ("tvm",)).device
    steps = Lowering(Choices(device, chosen)).steps(graph)
    (step,) = steps.steps
    site = step.site
    if step.lowered is None:
        return Outcome(failure=step.reason)
    objects = compile_kernels(kernels_of(step, args["sizes"]), device)
    plan = bound_plan(program, graph, site, step, objects)
    off = error(program, graph, plan, args["sizes"])
    seconds = times(ring_of(step), args["sizes"], objects)
    return Outcome(tuple(seconds), off, limit_of(step))


def _tasks_of(program: Program, step: Step, uses: int, device: Device) -> list[Task]:
    """The tasks of one region: one for every schedule that its kernels ask for."""
    assert step.lowered is not None
    asked = _Asked({})
    _lowered(step, device, asked)
    found = []
    for (template, bucket), defaults in asked.asked.items():
        one = task(template, bucket, defaults)
        case = _case_of(step, device, (template, bucket), one)
        if case is None:
            continue
        sizes = _sizes(step, case)
        args = {
            "program": print_program(excerpt(program, alone(step.site)[0])),
            "device": device.name,
            "template": template,
            "bucket": bucket,
            "sizes": sizes,
            "threads": torch.get_num_threads(),
        }
        found.append(task(template, bucket, defaults, args=args, where=step.site.place, uses=uses))
    return found


def _others(one: Task) -> list[Schedule]:
    """Every schedule that differs from the default in one knob."""
    default = one.space.default()
    pairs = ((knob, value) for knob in one.space.knobs for value in knob.values if value != knob.default)
    return [s for s in (default.replace(knob.name, value) for knob, value in pairs) if one.space.allows(s)]


def _lowered(step: Step, device: Device, schedule: Any) -> Lowered | None:
    graph = alone(step.site)[0]
    (made,) = Lowering(Choices(device, schedule)).steps(graph).steps
    return made.lowered


def _case_of(step: Step, device: Device, asked: tuple[str, str], one: Task) -> Case | None:
    """The case whose kernels change with the schedule, whichever knob it takes: a kernel may have no use for some."""
    assert step.lowered is not None
    for other in _others(one):
        changed = _lowered(step, device, _Asked({}, asked, other))
        for old, new in zip(step.lowered.cases, changed.cases if changed is not None else (), strict=False):
            if [call.kernel.symbol for call in old.calls] != [call.kernel.symbol for call in new.calls]:
                return old
    return None


def _sizes(step: Step, case: Case) -> dict[str, int]:
    """Sizes that the case serves: as many rows as it takes."""
    names = list(used_sizes(alone(step.site)[0]))
    sizes = dict.fromkeys(names, 1)
    longest = next((n for n in ("S", "R", "B", *names) if n in sizes), None)
    if longest is not None:
        sizes[longest] = case.most or MANY
    return sizes
