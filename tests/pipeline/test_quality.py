"""The budget along a pipeline, with a measure whose answers the tests decide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from irx.budget import Budget
from irx.errors import BudgetError
from irx.ir.program import Program
from irx.ledger import DROPPED, KEPT, NO_MATCH, REFUSED, Ledger
from irx.pipeline.base import Context, Effect, Pass, Report, Site, Stage
from irx.pipeline.instruments import Dropped, Gain, Instrument, Quality, Verify
from irx.pipeline.latency import Latency
from irx.pipeline.pipeline import Pipeline
from tests.pipeline.toys import Blur, Flip, Look, context, program


@dataclass(frozen=True)
class Shift(Blur):
    """Adds a number to the output: as lossy as the number is large."""

    name = "shift"
    by: float = 0.01

    def run(self, program: Program, ctx: Context) -> Report:
        graph = program.graphs["forward"]
        node = graph.add("add", [graph.outputs[0], self.by])
        graph.outputs[0] = node.output
        return Report([Site("forward", node.loc, "shifted")])


@dataclass(frozen=True)
class Nothing(Pass):
    """Lossy, and finds nothing to do."""

    name = "nothing"
    stage = Stage.FUSE
    effect = Effect.LOSSY

    def run(self, program: Program, ctx: Context) -> Report:
        return Report()


class Sum:
    """As KL the sum of all shifts, and what follows from it; counts what it measures."""

    def __init__(self, scale: float = 1.0) -> None:
        self.asked, self.scale = 0, scale
        self.decoding: list[bool] = []

    def __call__(self, program: Program, decoding: bool) -> Mapping[str, float]:
        self.asked += 1
        self.decoding.append(decoding)
        literals = [v for node in program.graphs["forward"].nodes for v in node.inputs if node.op.name == "add"]
        total = sum(float(v.value) for v in literals if hasattr(v, "value")) - 1.0  # the toy adds 1 itself
        return {"kl": total * self.scale, "top1": 1 - total}


def run(*passes: Pass, budget: Budget | None, measure: Sum | None = None, strict: bool = False) -> tuple[int, Ledger]:
    """How many shifts and flips are in the result, and the ledger."""
    quality = Quality(measure or Sum(), budget)
    result, ledger = Pipeline(passes, (quality, Verify())).run(program(), context(), strict=strict)
    return len(result.graphs["forward"]) - 3, ledger


def test_what_is_spent_and_left_is_entered() -> None:
    count, ledger = run(Shift(by=0.01), Shift(by=0.02), budget=Budget(kl=0.05))
    assert count == 2
    first, second = ledger.rows
    assert (first.decision, first.metric, first.spent, first.left) == (
        KEPT,
        "kl",
        pytest.approx(0.01),
        pytest.approx(0.04),
    )
    assert (second.spent, second.left) == (pytest.approx(0.03), pytest.approx(0.02)), "of the whole program so far"
    assert second.quality == ledger.summary.quality == pytest.approx({"kl": 0.03, "top1": 0.97})


def test_a_pass_over_the_budget_is_dropped_and_the_others_stay() -> None:
    count, ledger = run(Shift(by=0.01), Shift(by=0.07), Shift(by=0.02), budget=Budget(kl=0.05), strict=True)
    assert count == 2
    assert [row.decision for row in ledger.rows] == [KEPT, DROPPED, KEPT]
    assert ledger.rows[1].reason == "over budget: kl 0.08 of 0.05"
    assert ledger.rows[1].spent == pytest.approx(0.08)
    assert ledger.rows[1].left == pytest.approx(-0.03)
    assert ledger.rows[2].spent == pytest.approx(0.03), "what was dropped costs nothing"
    assert ledger.summary.quality["kl"] == pytest.approx(0.03)


def test_the_nearest_of_several_limits_is_told() -> None:
    _, ledger = run(Shift(by=0.03), budget=Budget(kl=0.1, top1=0.95))
    assert (ledger.rows[0].metric, ledger.rows[0].left) == ("1 - top1", pytest.approx(0.02))
    _, ledger = run(Shift(by=0.03), budget=Budget(kl=0.04, top1=0.95))
    assert ledger.rows[0].metric == "kl"
    _, ledger = run(Shift(by=0.03), budget=Budget(kl=0.1, top1=0.98))
    assert ledger.rows[0].decision == DROPPED
    assert ledger.rows[0].reason == "over budget: 1 - top1 0.03 of 0.02"


@pytest.mark.parametrize("by", [0.01, 0.0])
def test_a_budget_of_zero_gives_the_exact_program(by: float) -> None:
    count, ledger = run(Flip(), Shift(by=by), budget=Budget(kl=0))
    assert count == 1, "passes that keep the function stay"
    assert [row.decision for row in ledger.rows] == [KEPT, DROPPED]


def test_without_a_budget_figures_are_entered_and_nothing_is_dropped() -> None:
    count, ledger = run(Shift(by=5.0), budget=None)
    assert count == 1
    assert (ledger.rows[0].metric, ledger.rows[0].spent, ledger.rows[0].left) == ("kl", pytest.approx(5.0), None)


def test_a_loss_that_is_no_number_is_over_every_budget() -> None:
    count, ledger = run(Shift(by=0.01), budget=Budget(kl=1.0), measure=Sum(float("nan")))
    assert count == 0
    assert "kl nan of 1" in ledger.rows[0].reason
    assert ledger.rows[0].spent is None
    assert Ledger.from_json(ledger.to_json()) == ledger


@dataclass(frozen=True)
class Elsewhere(Shift):
    """Says that what it changed is in another graph."""

    name = "elsewhere"

    def run(self, program: Program, ctx: Context) -> Report:
        (site,) = super().run(program, ctx).sites
        return Report([Site("decode", site.loc, site.what)])


def test_what_forward_does_not_show_is_measured_in_decoding() -> None:
    measure = Sum()
    run(Shift(by=0.01), Elsewhere(by=0.2), Shift(by=0.01), budget=Budget(kl=0.1), measure=measure)
    assert measure.decoding == [False, True, False], "what was dropped does not count"
    measure = Sum()
    run(Shift(by=0.01), Elsewhere(by=0.02), Shift(by=0.01), budget=Budget(kl=0.1), measure=measure)
    assert measure.decoding == [False, True, True], "from then on, as the whole program is measured"


def test_only_lossy_passes_that_did_something_are_measured() -> None:
    measure = Sum()
    _, ledger = run(Look(), Flip(), Nothing(), budget=Budget(kl=0.1), measure=measure)
    assert measure.asked == 0
    assert [row.spent for row in ledger.rows] == [None, None, None]
    assert ledger.rows[2].decision == NO_MATCH
    _, ledger = run(Look(), budget=Budget(kl=0.1))
    assert ledger.notes == ["nothing of the budget is spent: the pipeline names no lossy pass"]


def test_a_pipeline_that_runs_again_measures_only_what_is_new() -> None:
    """Gain drops the flip in front: what follows it is another program and measured anew, what is before it is not."""
    costs, measure = {"add": 1.0, "tanh": 1.0, "neg": 9.0}, Sum()

    def clock(made: Program) -> Latency:
        gained = 1000 * Sum()(made, False)["kl"]  # by shifts, which would be dropped without
        return Latency(sum(costs[node.op.name] for node in made.graphs["forward"].nodes) - gained, 0.0)

    passes = (Shift(by=0.01), Flip(), Shift(by=0.02))
    quality = Quality(measure, Budget(kl=0.1))
    _, ledger = Pipeline(passes, (quality, Gain(clock))).run(program(), context())
    assert [row.decision for row in ledger.rows] == [KEPT, DROPPED, KEPT]
    assert measure.asked == 3
    assert [row.spent for row in ledger.rows] == [pytest.approx(0.01), None, pytest.approx(0.03)]


def test_an_instrument_that_fails_refuses_and_one_that_drops_does_not() -> None:
    class Judge(Instrument):
        def after(self, one: Pass, program: Program, report: Report) -> None:
            raise BudgetError("cannot be measured") if isinstance(one, Shift) else Dropped("not wanted")

    _, ledger = Pipeline((Look(), Shift()), (Judge(),)).run(program(), context())
    assert [(row.decision, row.reason) for row in ledger.rows] == [
        (DROPPED, "not wanted"),
        (REFUSED, "cannot be measured"),
    ]


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({}, "without limits"),
        ({"metric": len}, "go together"),
        ({"max": 1.0}, "go together"),
        ({"kl": -0.1}, "at least 0"),
        ({"top1": 1.1}, "between 0 and 1"),
        ({"ppl_ratio": 0.9}, "at least 1"),
        ({"cosine": 2}, "between -1 and 1"),
        ({"kl": float("nan")}, "at least 0"),
    ],
)
def test_budgets_that_cannot_be_used(limits: dict[str, float], says: str) -> None:
    with pytest.raises(BudgetError, match=says):
        Budget(**limits)  # type: ignore[arg-type]


def test_limits_are_losses() -> None:
    found = Budget(kl=0.05, top1=0.9, ppl_ratio=1.02, cosine=0.99, metric=len, max=3).limits()
    assert [(limit.loss, limit.most) for limit in found] == [
        ("kl", 0.05),
        ("1 - top1", pytest.approx(0.1)),
        ("ppl_ratio - 1", pytest.approx(0.02)),
        ("1 - cosine", pytest.approx(0.01)),
        ("len", 3),
    ]
    figures = {"kl": 0.01, "top1": 0.95, "ppl_ratio": 0.99, "cosine": 1.0, "len": 2}
    assert [limit.spent(figures) for limit in found] == pytest.approx([0.01, 0.05, -0.01, 0.0, 2])


def test_limits_on_figures_that_a_model_does_not_have() -> None:
    Budget(cosine=0.9).require(["cosine"])
    Budget(metric=len, max=3).require(["cosine"])
    with pytest.raises(BudgetError, match="ppl_ratio cannot be measured"):
        Budget(cosine=0.9, ppl_ratio=1.1).require(["cosine"])


@dataclass(frozen=True)
class Mend(Shift):
    """Takes back a part of what earlier passes added."""

    name = "mend"
    repairs = True
    by: float = -0.05


def test_a_pass_is_judged_together_with_its_repair() -> None:
    count, ledger = run(Shift(by=0.06), Mend(by=-0.03), Shift(by=0.01), budget=Budget(kl=0.05))
    assert count == 3
    assert [row.decision for row in ledger.rows] == [KEPT] * 3
    assert [row.spent for row in ledger.rows] == pytest.approx([0.06, 0.03, 0.04]), "each as it was behind that pass"


def test_what_costs_most_goes_where_repair_is_not_enough() -> None:
    measure = Sum()
    passes = (Shift(by=0.02), Shift(by=0.07), Mend(by=-0.01), Shift(by=0.03))
    count, ledger = run(*passes, budget=Budget(kl=0.05), measure=measure)
    assert count == 3
    assert [row.decision for row in ledger.rows] == [KEPT, DROPPED, KEPT, KEPT]
    assert ledger.rows[1].reason == "over budget: kl 0.08 of 0.05, also when it is repaired"
    assert [row.spent for row in ledger.rows] == pytest.approx([0.02, 0.09, 0.01, 0.04])
    assert measure.asked == 5, "nothing behind the verdict, and nothing twice"


def test_a_repair_that_makes_things_worse_is_dropped() -> None:
    count, ledger = run(Shift(by=0.02), Mend(by=0.01), budget=Budget(kl=0.05))
    assert (count, ledger.rows[1].decision) == (1, DROPPED)
    assert ledger.rows[1].reason == "it repairs nothing: kl 0.03, and 0.02 without it"
    count, ledger = run(Shift(by=0.06), Mend(by=0.01), budget=Budget(kl=0.05))
    assert [row.decision for row in ledger.rows] == [DROPPED, KEPT], "then the pass before it stands for itself"


@dataclass(frozen=True)
class Idle(Nothing):
    """A repair that finds nothing to do."""

    name = "idle"
    repairs = True


def test_a_repair_that_finds_nothing_saves_nothing() -> None:
    count, ledger = run(Shift(by=0.06), Idle(), budget=Budget(kl=0.05))
    assert (count, ledger.rows[0].decision, ledger.rows[1].decision) == (0, DROPPED, NO_MATCH)
    count, ledger = run(Shift(by=0.04), Idle(), budget=Budget(kl=0.05))
    assert count == 1
