"""Tuning of kernels: which tasks a graph has, and the runner that tries one candidate in a process of its own.

A candidate is a whole region built with the schedule: its result is compared with the oracle on random data, and its
time is that of the region with weights that are not in the cache.
"""

from __future__ import annotations

from typing import Any

import torch

import irx.ops  # noqa: F401  declares the ops that a text names
from irx.backends.regions.asked import Asked, Tunables
from irx.backends.regions.lowered import Choices
from irx.backends.tvm.checking import bound_plan, error, limit_of
from irx.backends.tvm.codegen import compile_kernels
from irx.backends.tvm.knobs import task
from irx.backends.tvm.measure import kernels_of
from irx.backends.tvm.rings import ring_of, times
from irx.backends.tvm.steps import Lowering
from irx.ir.graph import Graph
from irx.ir.parser import parse
from irx.ir.program import Program
from irx.target import Device, Target
from irx.tuning import Outcome, Schedule, Task


def tasks(program: Program, graph: Graph, device: Device) -> list[Task]:
    """Everything that can be tuned in a graph, each kernel once."""
    args = {"device": device.name, "threads": torch.get_num_threads()}
    return Tunables(lambda chooser: Lowering(Choices(device, chooser)), task, args).tasks(program, graph)


def run(args: dict[str, Any], schedule: Schedule) -> Outcome:
    """Build, check and time one candidate: a runner of `irx.tuning`."""
    program = parse(args["program"])
    (graph,) = program.graphs.values()
    torch.set_num_threads(args["threads"])
    chosen = Asked({}, (args["template"], args["bucket"]), schedule)
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
