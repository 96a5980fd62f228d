"""Recording of calls that repeat. The graphs are closures here: recorded without being run, run when replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from irx.backends.triton.binding import Bound
from irx.backends.triton.capture import CALLS_BEFORE, Recorder
from irx.ir.graph import Value
from irx.ir.types import KVType, TensorType
from irx.runtime.kv import KVState, empty_state

KV = KVType(1, 1, 2, 2, "f32")


class Closure:
    def __init__(self, launch: Callable[[], None]) -> None:
        self.launch, self.replays = launch, 0

    def replay(self) -> None:
        self.replays += 1
        self.launch()


class Step:
    """Stands for a bound plan: writes the input, through a room, and the sum of its state into a new output."""

    large: tuple[int, ...] = ()

    def __init__(self) -> None:
        self.room = torch.zeros(3)
        self.launches = 0

    def enter(self, inputs: Sequence[Any]) -> list[Any]:
        return [self.room.copy_(inputs[0]), inputs[1]]

    def new_outputs(self) -> list[Any]:
        return [torch.full((3,), torch.nan), None]

    def launch(self, given: Sequence[Any], outputs: Sequence[Any]) -> None:
        self.launches += 1
        given[1].keys.tensor[0, 0, 0] += 1
        outputs[0].copy_(given[0] + given[1].keys.tensor.sum())

    def results(self, given: Sequence[Any], outputs: list[Any]) -> list[Any]:
        return [outputs[0], given[1]]


def state(slots: int = 4) -> KVState:
    return KVState(torch.zeros(1, 1, slots, 2), torch.zeros(1, 1, slots, 2), (0,))


@pytest.fixture
def graphs() -> list[Closure]:
    return []


@pytest.fixture
def recorder(graphs: list[Closure]) -> Recorder:
    def record(launch: Callable[[], None]) -> Closure:
        graphs.append(Closure(launch))
        return graphs[-1]

    return Recorder([Value("x", TensorType((3,), "f32")), Value("kv", KV)], record)


def call(recorder: Recorder, step: Step, value: float, kept: KVState) -> Tensor:
    out, same = recorder.run(cast(Bound, step), [torch.full((3,), value), kept])
    assert same is kept
    return cast(Tensor, out)


def test_the_third_equal_call_is_recorded_and_replayed(recorder: Recorder, graphs: list[Closure]) -> None:
    step, kept = Step(), state()
    for number in range(6):
        out = call(recorder, step, 10.0 * number, kept)
        assert out.tolist() == [10.0 * number + 2 * (number + 1)] * 3
    assert [graph.replays for graph in graphs] == [6 - CALLS_BEFORE]
    assert step.launches == 6  # recording launches nothing
    assert recorder.recorded == 1


def test_results_are_not_overwritten_by_later_calls(recorder: Recorder) -> None:
    step, kept = Step(), state()
    outs = [call(recorder, step, 1.0, kept) for _ in range(5)]
    assert [float(out[0]) for out in outs] == [3.0, 5.0, 7.0, 9.0, 11.0]


def test_a_cache_at_another_address_is_recorded_anew(recorder: Recorder, graphs: list[Closure]) -> None:
    step, kept = Step(), state()
    for _ in range(4):
        call(recorder, step, 0.0, kept)
    kept.reserve(9, 100)
    before = float(kept.keys.tensor.sum())
    outs = [float(call(recorder, step, 0.0, kept)[0]) for _ in range(4)]
    assert outs == [before + 2 * (number + 1) for number in range(4)]
    assert [graph.replays for graph in graphs] == [2, 2]


def test_pages_that_have_moved_are_recorded_anew(recorder: Recorder, graphs: list[Closure]) -> None:
    step, kept = Step(), empty_state(replace(KV, page=2), 1, torch.device("cpu"), 4)
    for _ in range(4):
        call(recorder, step, 0.0, kept)
    assert kept.paged is not None
    kept.paged.tensor = kept.paged.tensor.clone()
    for _ in range(4):
        call(recorder, step, 0.0, kept)
    assert [graph.replays for graph in graphs] == [2, 2]


def test_another_size_is_another_call(recorder: Recorder, graphs: list[Closure]) -> None:
    steps, kept = (Step(), Step()), state()
    for _ in range(3):
        for step in steps:
            call(recorder, step, 0.0, kept)
    assert len(graphs) == 2


def test_without_a_way_to_record_every_call_launches() -> None:
    class Eager(Step):
        def run(self, inputs: Sequence[Any]) -> list[Any]:
            given, outputs = self.enter(inputs), self.new_outputs()
            self.launch(given, outputs)
            return self.results(given, outputs)

    recorder, step, kept = Recorder([], None), Eager(), state()
    for _ in range(4):
        call(recorder, step, 0.0, kept)
    assert (step.launches, recorder.recorded) == (4, 0)
