"""What compiling measures of a program: the time of a step on the device, and quality on the user's data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from irx.analysis.calibration import Calibration, Inputs
from irx.analysis.data import Data
from irx.analysis.quality import HeldOut
from irx.api.assembling import build
from irx.api.targets import here, preferred
from irx.backends import find_backend
from irx.backends.torch.call import call_on_arrays
from irx.budget import Budget, metric_name
from irx.frontends.sources import Source
from irx.ir.excerpt import main_graph
from irx.ir.graph import Graph
from irx.ir.opdef import Array
from irx.ir.program import Program
from irx.ledger import Ledger
from irx.passes import passes
from irx.pipeline.backend import Latency
from irx.pipeline.base import Context
from irx.pipeline.instruments import Quality
from irx.pipeline.latency import CONTEXT
from irx.pipeline.oracle import Oracle
from irx.pipeline.pipeline import Pipeline
from irx.runtime.arrays import run_graph
from irx.runtime.snapshot import tensor_of
from irx.runtime.spill import settled
from irx.runtime.store import WeightStore
from irx.target import Target


def latency(program: Program, goal: Target, context: int) -> Latency | str:
    """The time of one step of a program of one graph."""
    (graph,) = main_graph(program).graphs.values()
    return preferred(goal).latency(program, graph, goal.device, context)


def latencies(graphs: Sequence[Graph], goal: Target, context: int) -> list[Latency]:
    """The times of one call of graphs that have a `latency`, taken now and in turns; none where they are predicted."""
    return preferred(goal).latencies(graphs, goal.device, context)


def held_out(program: Program, goal: Target, data: Data) -> HeldOut:
    """What measures programs against this one on held-out data: with torch, what decoding changes with kernels."""
    return HeldOut(program, data, runner(goal), partial(_sessions, goal=goal))


def judge_of(judge: HeldOut, budget: Budget | None) -> Quality:
    """What measures lossy passes on the held-out data. Raises BudgetError for a limit that they cannot measure."""
    if budget is not None:
        budget.require(judge.names)

    def figures(changed: Program, decoding: bool) -> dict[str, float]:
        own = budget.metric if budget is not None else None
        return judge.figures(changed, decoding) | (
            {metric_name(own): judge.own(own, changed)} if own is not None else {}
        )

    return Quality(figures, budget)


def context_of(program: Program, goal: Target, data: Data | None, tokens: int = CONTEXT) -> Context:
    """What passes know: the device, its layouts, and the data they may look at, through torch."""
    ctx = Context.of(program, goal.device, Oracle(call=call_on_arrays))
    ctx.context = tokens
    ctx.layouts, ctx.endings = preferred(goal).layouts, preferred(goal).endings
    if data is not None:
        ctx.calibration = Calibration(data.calibration, runner(goal), data.digest)
    return ctx


def transform(program: Program, goal: Target, pipeline: str, data: Data | None) -> tuple[Program, Ledger]:
    """What the passes of a pipeline make of a program, without any checks or measurements: for who measures himself."""
    return Pipeline.parse(pipeline, passes()).run(program, context_of(program, goal, data))


def runner(goal: Target) -> Callable[[Program], Callable[[Inputs], list[Array]]]:
    """What makes programs of one graph runnable with torch, as `HeldOut` wants it."""
    return partial(_run_with_torch, goal=goal)


def _run_with_torch(program: Program, goal: Target) -> Callable[[Inputs], list[Array]]:
    """A function that runs a program of one graph with torch."""
    device = here(goal).device
    backend, (graph,) = find_backend("torch"), program.graphs.values()
    kernel = backend.load(backend.build(program, graph, device), device)
    weights, place = settled(program.weights, program.used_weights()), torch.device(device.place)
    kernel.bind(WeightStore(partial(tensor_of, weights), place))
    return lambda inputs: run_graph(kernel, inputs, place)


def _sessions(program: Program, goal: Target) -> Callable[[int], Callable[[Array], torch.Tensor]]:
    """What opens sessions of some rows with a program that has a cache.

    It runs as it will be compiled where the target is here: token by token torch takes many times as long, and the
    kernels that this takes are those that the program is compiled to in the end, or most of them.
    """
    place = here(goal)
    lowered, ledger = transform(program, place, "default", None)
    made = build(lowered, place, ledger, Source(lowered))

    def begin(rows: int) -> Callable[[Array], torch.Tensor]:
        session = made.session(rows)
        return lambda ids: session.append(torch.from_numpy(np.ascontiguousarray(ids)).to(place.device.place))

    return begin
