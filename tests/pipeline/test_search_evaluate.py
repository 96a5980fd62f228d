"""Candidates of a search on a small program: passes that run, quality and time as the tests decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from irx.analysis.data import Data
from irx.budget import Budget
from irx.errors import PassConflict
from irx.ir.graph import Graph
from irx.ir.program import Program
from irx.passes import passes
from irx.pipeline.base import Context, Report
from irx.pipeline.index import PassIndex
from irx.pipeline.latency import Latency
from irx.pipeline.search.evaluate import PREFILL, Clock, Evaluator, floor_seconds, joined
from irx.pipeline.search.hunt import Hunt
from irx.pipeline.search.levels import SERVING, TABLE, Unit, ranked, ranks, spelled, units_of
from irx.pipeline.search.settings import Search
from irx.pipeline.text import read_items
from tests.pipeline.test_quality import Elsewhere, Nothing, Shift, Sum
from tests.pipeline.toys import Flip, Look, Raise, context, program


@dataclass(frozen=True)
class Other(Shift):
    """Goes with no shift."""

    name = "other"
    conflicts = ("shift",)


INDEX = PassIndex.of(Look, Flip, Shift, Elsewhere, Nothing, Raise, Other)


def count(made: Program) -> Latency:
    """A millisecond for every node."""
    return Latency(1e-3 * len(made.graphs["forward"]), 0.0)


def evaluator(measure: Sum | None = None, clock: Clock = count) -> Evaluator:
    return Evaluator(program(), "look | flip", INDEX, context(), measure or Sum(), clock)


def test_quality_and_time_of_a_candidate() -> None:
    measure = Sum()
    found = evaluator(measure)("shift{by=0.02} | shift{by=0.01}")
    assert found.figures == pytest.approx({"kl": 0.03, "top1": 0.97})
    assert found.seconds == pytest.approx(6e-3), "three nodes, two shifts, and the flip of the pipeline"
    assert (measure.asked, measure.decoding) == (1, [False])
    assert evaluator()("").figures["kl"] == pytest.approx(0)


def test_candidates_are_timed_again_in_turns() -> None:
    """All at once, with what is timed of each made once."""
    asked: list[int] = []

    def again(graphs: Sequence[Graph]) -> list[Latency]:
        asked.append(len(graphs))
        return [Latency(1.0 * len(graph), 0.1) for graph in graphs]

    made = replace(evaluator(), again=again)
    made("shift")
    assert made.in_turns(["", "shift"]) == {"": Latency(4.0, 0.1), "shift": Latency(5.0, 0.1)}
    assert asked == [2] and set(made.fused) == {"", "shift"}
    assert evaluator().in_turns(["", "shift"]) == {}, "where nothing is measured"


def test_what_forward_does_not_show_is_measured_in_decoding() -> None:
    measure = Sum()
    evaluator(measure, lambda made: Latency(1.0 / count(made).seconds, 0.0))("shift | elsewhere")
    assert measure.decoding == [True]


def test_what_takes_long_to_measure_must_first_be_faster() -> None:
    measure = Sum()
    found = evaluator(measure)("shift | elsewhere")
    assert "no faster at a context of" in found.reason and measure.asked == 0


def test_a_first_look_predicts_the_time_and_sees_little_data() -> None:
    measure, little = Sum(), Sum()
    one = evaluator(measure)
    assert one.glance("shift").figures == {}, "there is no first look"
    one.glances = little
    found = one.glance("shift{by=0.02}")
    assert found.figures["kl"] == pytest.approx(0.02) and (little.asked, measure.asked) == (1, 0)
    assert found.seconds == pytest.approx(evaluator()("").seconds), "as many bytes as before"
    assert one.glance("elsewhere").figures == {} and one.glance("nothing").reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nothing", "nothing changes nothing: nothing like it in the program"),
        ("shift | nothing", "nothing changes nothing"),
        ("shift | other", "cannot be in one pipeline"),
        ("absent", "absent"),
    ],
)
def test_candidates_that_cannot_be_used_say_why(text: str, reason: str) -> None:
    measure = Sum()
    assert reason in evaluator(measure)(text).reason
    assert measure.asked == 0


def test_a_candidate_whose_measure_fails_is_one_less_to_choose_from() -> None:
    def broken(changed: Program, decoding: bool) -> Mapping[str, float]:
        raise MemoryError("too large")

    found = replace(evaluator(), quality=broken)("shift")
    assert found.reason == "MemoryError: too large"


def test_a_disturbed_time_is_taken_again() -> None:
    times = iter([Latency(9.0, 8.0), Latency(4.0, 3.0), Latency(5.0, 4.0), Latency(2.0, 0.1)])
    one = evaluator(clock=lambda made: next(times))
    assert one("shift").seconds == 4.0, "the least of three, all disturbed"
    assert one("shift").seconds == 2.0, "the first is good"


def test_times_that_cannot_be_measured_are_predicted() -> None:
    one = evaluator(clock=lambda made: "there is no such device here")
    assert one("").seconds == pytest.approx(floor_seconds(program(), context()))
    assert one.remarks() == [
        "search: times are predicted from bytes and operations, not measured: there is no such device here"
    ]


def test_predicted_times_are_corrected_by_the_measured_one() -> None:
    """Only the unchanged program, of four nodes, can be timed."""
    one = evaluator(clock=lambda made: count(made) if len(made.graphs["forward"]) == 4 else "too small")
    assert one("").seconds == pytest.approx(4e-3)
    assert one("shift").seconds == pytest.approx(4e-3), "as many bytes as before"


def test_a_search_over_passes_of_a_program() -> None:
    """Times are told apart by a clock for which shifts are a gain."""

    def clock(made: Program) -> Latency:
        return Latency(1.0 / len(made.graphs["forward"]), 0.0)

    units = [Unit("depth", ("shift{by=0.01}", "shift{by=0.03}")), Unit("cache", ("elsewhere{by=0.025}", "nothing"))]
    found = Hunt(units, evaluator(clock=clock), Budget(kl=0.04)).run()
    assert found.ranked[0].text == "shift{by=0.01} | elsewhere{by=0.025}"
    assert any("nothing changes nothing" in note for note in found.notes)


def test_passes_join_a_pipeline_at_the_end_of_their_stage() -> None:
    assert str(joined("look | flip", "shift", INDEX)) == "look | flip | shift"
    assert str(joined("look | flip", "", INDEX)) == "look | flip"
    text = "skip-layers{keep=3} | kv-quantize | quantize-weights"
    names = [one.name for one in joined("default", text, passes()).passes]
    assert names.index("slice-rows") < names.index("skip-layers") < names.index("kv-quantize")
    assert names.index("quantize-weights") < names.index("fold-scale")
    with pytest.raises(PassConflict):
        joined("look | shift", "other", INDEX)


def test_the_table_names_passes_that_are_there_in_the_order_of_stages() -> None:
    for unit in TABLE:
        for level in unit.levels:
            first, *serving = read_items(level)
            assert passes().load(first.name).stage.name.lower() == unit.family
            stages = {item.name: passes().load(item.name).stage.name.lower() for item in serving}
            assert all(stage == SERVING.get(name, unit.family) for name, stage in stages.items())
    order = [unit.family for unit in TABLE]
    assert order == sorted(order, key=["depth", "tokens", "attention", "cache", "weights"].index)


def test_levels_of_a_program_without_blocks_and_unknown_passes() -> None:
    table = [Unit("depth", ("shift{by=N-1}", "shift")), Unit("cache", ("kv-quantize",))]
    assert units_of(program(), INDEX, table) == [Unit("depth", ("shift",))]


def test_every_level_of_the_table_can_be_configured() -> None:
    """With a number of blocks for N."""
    for unit in TABLE:
        for level in unit.levels:
            filled = replace(unit, levels=(level.replace("N-", "1"),))
            assert joined("none", spelled([filled], (1,)), passes()).passes


def test_a_sample_of_the_calibration_data_takes_the_place_of_what_is_held_out() -> None:
    batches = tuple({"ids": np.full((2, 8), i)} for i in range(4))
    data = Data(batches, ({"ids": np.zeros((2, 8))},), ids="ids", digest="whole")
    sample = data.sample(20, 100)
    assert sample.held_out == batches[2:]
    assert sample.calibration == batches[:2], "what is fitted to is not judged by"
    assert data.sample(20, 10).calibration == batches[:1]
    assert sample.digest not in ("whole", data.sample(60, 100).digest)
    assert replace(data, ids=None).sample(20, 20).held_out == batches[2:]
    alone = replace(data, calibration=batches[:1]).sample(20, 20)
    assert (alone.calibration, alone.held_out) == (batches[:1], batches[:1])


def test_what_begins_alike_is_made_once() -> None:
    ran: list[float] = []

    class Counted(Shift):
        def run(self, program: Program, ctx: Context) -> Report:
            ran.append(self.by)
            assert (ctx.captured is None) == (len(ran) == 1), "the captured program is known behind the first pass"
            return super().run(program, ctx)

    one = replace(evaluator(), index=PassIndex.of(Look, Flip))
    one._made([Counted(by=0.01)])
    both = one._made([Counted(by=0.01), Counted(by=0.02)])
    assert ran == [0.01, 0.02]
    assert len(both.program.graphs["forward"]) == len(one.normalized.graphs["forward"]) + 2


def test_the_time_of_prompts_counts_where_a_search_wants_it() -> None:
    made = program()
    made.graphs["prefill"] = made.graphs["forward"].clone()
    found = replace(evaluator(), program=made, clock=lambda part: Latency(1e-3 if PREFILL in part.graphs else 2e-3, 0))
    assert found("").seconds == pytest.approx(2e-3)
    assert replace(found, prompt=64.0)("").seconds == pytest.approx(2e-3 + 0.5e-3)
    units = [Unit("depth", ("a",)), Unit("tokens", ("b",), prompts=True), Unit("cache", ("c",), contexts=True)]
    assert [Search().wants(unit, 128) for unit in units] == [True, False, False]
    assert [Search().wants(unit, 2048) for unit in units] == [True, False, True]
    assert [Search(prompt=1.0, families=("tokens",)).wants(unit, 2048) for unit in units] == [False, True, False]


def test_parts_of_one_pass_are_joined_and_repaired_once() -> None:
    least = {"block": [3, 2], "attn": [2], "mlp": [1, 2]}
    table = [
        Unit("depth", ("skip-layers{policy=similarity, keep=5}",) * 2),
        Unit("attention", ("share | repair-output",)),
    ]
    units = ranked(table, least)
    assert [unit.fine for unit in units] == [False, True, True, True, True, True, False]
    first = 'skip-layers{policy=list, layers=["2", "3"]} | repair-output'
    assert units[0].levels[1] == first
    text = spelled(units, (0, 1, 0, 1, 1, 0, 1))
    assert text == 'skip-layers{policy=list, layers=["2.attn", "2.mlp", "3.block"]} | share | repair-output'
    assert spelled(units, (0, 0, 0, 0, 0, 0, 0)) == ""
    assert ranks(table) and not ranks(units)


def test_words_of_levels_stay_words() -> None:
    for unit in TABLE:
        for level in range(len(unit.levels)):
            text = spelled([unit], (level + 1,))
            assert read_items(text) == read_items(unit.levels[level])
