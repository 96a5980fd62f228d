"""What passes bring, with a measure whose answers the tests decide: a program costs what its ops cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest

from irx.ir.graph import Graph
from irx.ir.program import Program
from irx.ledger import DROPPED, KEPT, Ledger
from irx.pipeline.base import Context, Effect, Pass, Report, Site, Stage
from irx.pipeline.instruments import Gain
from irx.pipeline.latency import Latency
from irx.pipeline.pipeline import Pipeline
from tests.pipeline.toys import Look, context, program

OPS = {"add": 4.0, "tanh": 2.0, "neg": 1.0, "silu": 5.0}


@dataclass(frozen=True)
class Swap(Pass):
    """Puts another op in the place of every node of one."""

    name = "swap"
    stage = Stage.FUSE
    effect = Effect.ROUNDING
    old: str = "tanh"
    new: str = "neg"

    def run(self, program: Program, ctx: Context) -> Report:
        sites = []
        for name, graph in program.graphs.items():
            for node in [node for node in graph.nodes if node.op.name == self.old]:
                made = graph.add(self.new, [node.inputs[0]], before=node, loc=node.loc)
                graph.replace(node.output, made.output)
                graph.erase(node)
                sites.append(Site(name, node.loc, f"{self.old} is {self.new}"))
        return Report(sites)


@dataclass(frozen=True)
class LossySwap(Swap):
    """The same, and it says that it changes what is computed."""

    name = "lossy-swap"
    effect = Effect.LOSSY


@dataclass(frozen=True)
class Mending(LossySwap):
    """The same, to mend what another one did."""

    name = "mending"
    repairs = True


@dataclass(frozen=True)
class Unweigh(Pass):
    """Puts a product by a number in the place of a sum with a weight."""

    name = "unweigh"
    stage = Stage.FUSE
    effect = Effect.LOSSY

    def run(self, program: Program, ctx: Context) -> Report:
        graph = program.graphs["forward"]
        node = next(iter(graph.nodes))
        made = graph.add("mul", [node.inputs[0], 2.0], before=node, loc=node.loc)
        graph.replace(node.output, made.output)
        graph.erase(node)
        return Report([Site("forward", node.loc, "no weight")])


@dataclass(frozen=True)
class EarlySwap(Swap):
    """The same, among the passes that no model runs without."""

    name = "early-swap"
    stage = Stage.NORMALIZE


class Clock:
    """The sum of what the ops cost; `noise` is the band of every answer."""

    def __init__(self, noise: float = 0.0, costs: Mapping[str, float] = OPS) -> None:
        self.noise, self.costs = noise, costs
        self.asked = 0

    def __call__(self, program: Program) -> Latency:
        self.asked += 1
        nodes = [node for graph in program.graphs.values() for node in graph.nodes]
        return Latency(sum(self.costs[node.op.name] for node in nodes), self.noise)


class PromptClock(Clock):
    """The same for prompts; a step takes equally long whatever it does."""

    def __call__(self, program: Program) -> Latency:
        return super().__call__(program) if "prefill" in program.graphs else Latency(10.0, 0.0)


def run(*passes: Pass, clock: Clock) -> tuple[list[str], Ledger]:
    """The ops of the result, and the ledger."""
    result, ledger = Pipeline(passes, (Gain(clock),)).run(program(), context())
    return [node.op.name for node in result.graphs["forward"].nodes], ledger


def test_a_faster_pass_is_kept_with_its_gain() -> None:
    ops, ledger = run(Swap(), clock=Clock(noise=0.1))
    (row,) = ledger.rows
    assert ops == ["add", "add", "neg"]
    assert row.decision == KEPT
    assert row.latency == pytest.approx(-1.0)
    assert row.noise == pytest.approx(0.1 * 2**0.5)


def test_a_slower_pass_is_dropped_with_what_it_cost() -> None:
    ops, ledger = run(Swap(new="silu"), clock=Clock(noise=0.1))
    (row,) = ledger.rows
    assert ops == ["add", "add", "tanh"]
    assert row.decision == DROPPED
    assert "3000000 us slower" in row.reason


def again(graphs: Sequence[Graph]) -> list[Latency]:
    """Whatever the first look said, all take equally long."""
    return [Latency(1.0, 0.0) for _ in graphs]


def test_no_pass_is_dropped_for_what_a_second_look_does_not_show() -> None:
    _, ledger = Pipeline((Swap(new="silu"),), (Gain(Clock(), again=again),)).run(program(), context())
    (row,) = ledger.rows
    assert (row.decision, row.latency) == (KEPT, 0.0)
    _, ledger = Pipeline((Swap(new="silu"),), (Gain(Clock(), again=lambda graphs: ()),)).run(program(), context())
    assert ledger.rows[0].decision == DROPPED, "where there is no second look"


def test_only_the_slower_of_two_is_dropped() -> None:
    ops, ledger = run(Swap("tanh", "silu"), Swap("add", "neg"), clock=Clock())
    assert ops == ["neg", "neg", "tanh"]
    assert [row.decision for row in ledger.rows] == [DROPPED, KEPT]
    assert ledger.rows[1].latency == pytest.approx(-6.0)


def test_what_is_gained_through_a_later_pass_counts() -> None:
    """The first makes the program slower, but the second, which needs it, much faster."""
    ops, ledger = run(Swap("tanh", "silu"), Swap("silu", "neg"), clock=Clock())
    assert ops == ["add", "add", "neg"]
    assert [row.decision for row in ledger.rows] == [KEPT, KEPT]
    assert ledger.rows[0].latency == pytest.approx(-1.0)
    assert ledger.rows[1].latency == pytest.approx(-4.0)


def test_a_loss_within_the_noise_is_no_reason() -> None:
    ops, ledger = run(Swap(new="silu"), clock=Clock(noise=1.5))
    assert ops == ["add", "add", "silu"]
    assert ledger.rows[0].decision == KEPT
    assert ledger.rows[0].latency == pytest.approx(3.0)


def test_a_lossy_pass_that_brings_nothing_is_dropped_with_its_reason() -> None:
    ops, ledger = run(LossySwap(new="silu"), clock=Clock())
    assert ops == ["add", "add", "tanh"]
    (row,) = ledger.rows
    assert (row.decision, row.unpaid) == (DROPPED, True)
    assert (row.latency, row.noise) == pytest.approx((3.0, 0.0))
    assert row.reason == (
        "it brings nothing on this device: a step takes +3000000 us, and weights and caches as many bytes"
    )


def test_a_lossy_pass_that_gains_nothing_clear_is_dropped_and_one_that_mends_others_stays() -> None:
    nearly = {**OPS, "tanh": 100.0, "silu": 99.5}
    assert run(LossySwap(new="silu"), clock=Clock(costs=nearly))[0] == ["add", "add", "tanh"]
    assert run(Mending(new="silu"), clock=Clock())[0] == ["add", "add", "silu"]


def test_only_the_lossy_pass_that_brings_nothing_is_dropped() -> None:
    ops, ledger = run(LossySwap(), LossySwap("neg", "silu"), clock=Clock())
    assert ops == ["add", "add", "neg"]
    assert [row.decision for row in ledger.rows] == [KEPT, DROPPED]


def test_a_lossy_pass_stays_for_the_bytes_that_it_saves() -> None:
    ops, ledger = run(Unweigh(), clock=Clock(costs={**OPS, "mul": 9.0}))
    assert ops == ["mul", "add", "tanh"]
    assert ledger.rows[0].decision == KEPT
    assert ledger.rows[0].latency == pytest.approx(5.0)


@pytest.mark.parametrize(("costs", "left"), [({"silu": 1.0}, "silu"), ({"silu": 2.0}, "tanh")])
def test_a_lossy_pass_stays_for_faster_prompts(costs: dict[str, float], left: str) -> None:
    """`forward` stands for the step, in which the op that it leaves costs as much as before."""
    made = program()
    made.graphs["prefill"] = made.graphs["forward"].clone()
    clock = PromptClock(costs={**OPS, **costs})
    result, ledger = Pipeline((LossySwap(new="silu"),), (Gain(clock),)).run(made, context())
    assert [node.op.name for node in result.graphs["forward"].nodes][-1] == left
    assert (ledger.rows[0].decision == KEPT) == (left == "silu")


@dataclass(frozen=True)
class Drop(Pass):
    """Leaves out every node of one op."""

    name = "drop"
    stage = Stage.FUSE
    effect = Effect.LOSSY
    old: str = "tanh"

    def run(self, program: Program, ctx: Context) -> Report:
        graph, sites = program.graphs["forward"], []
        for node in [node for node in graph.nodes if node.op.name == self.old]:
            assert node.inputs[0] is not None
            graph.replace(node.output, node.inputs[0])
            graph.erase(node)
            sites.append(Site("forward", node.loc, "left out"))
        return Report(sites)


def test_predictions_of_lossy_passes_stand_beside_their_gains() -> None:
    """Two of seven tensors that a step moves are the node's that goes, which the cost model sees."""
    _, ledger = run(Drop(), clock=Clock(costs={"add": 3.0, "tanh": 3.0}))
    (row,) = ledger.rows
    assert (row.latency, row.predicted) == (pytest.approx(-3.0), pytest.approx(-9.0 * 2 / 7))
    assert not row.mispredicted and "the cost model is off" not in str(ledger)
    _, ledger = run(Drop(), clock=Clock(costs={"add": 1.0, "tanh": 7.0}))
    assert ledger.rows[0].latency == pytest.approx(-7.0)
    assert ledger.rows[0].mispredicted
    assert "! the cost model is off for drop: it predicts -2571428.6 us a step, measured were -7000000.0 us" in str(
        ledger
    )
    _, ledger = run(Drop(), clock=Clock(noise=5.0, costs={"add": 1.0, "tanh": 7.0}))
    assert not ledger.rows[0].mispredicted, "within the noise"
    _, ledger = run(Swap(), clock=Clock())
    assert ledger.rows[0].predicted is None


def test_passes_that_models_need_to_run_and_those_without_matches_are_not_timed() -> None:
    clock = Clock()
    _, ledger = run(EarlySwap(new="silu"), Look(), Swap("softmax", "neg"), clock=clock)
    assert clock.asked == 0
    assert [row.latency for row in ledger.rows] == [None, None, None]


def test_why_nothing_was_measured_is_told_once() -> None:
    _, ledger = Pipeline((Swap(),), (Gain(lambda program: "the model is too small"),)).run(program(), context())
    assert ledger.rows[0].decision == KEPT
    assert ledger.rows[0].latency is None
    assert ledger.notes == ["the gain of passes was not measured: the model is too small"]


@dataclass(frozen=True)
class Counted(LossySwap):
    """The same, and the number of its runs is counted."""

    name = "counted"
    runs: ClassVar[list[int]] = []

    def run(self, program: Program, ctx: Context) -> Report:
        self.runs.append(1)
        return super().run(program, ctx)


def test_lossy_passes_do_not_run_again_to_judge_others() -> None:
    Counted.runs.clear()
    clock = Clock(costs={"add": 4.0, "tanh": 9.0, "neg": 7.0, "silu": 6.0, "relu": 3.0})
    ops, ledger = run(Swap(), Counted("neg", "silu"), Counted("silu", "relu"), clock=clock)
    assert ops == ["add", "add", "relu"]
    assert [row.latency for row in ledger.rows] == pytest.approx([-2.0, -1.0, -3.0])
    assert len(Counted.runs) == 2
