"""The search for lossy passes, with a measure whose answers the tests decide, and on a small program."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from irx.budget import Budget
from irx.cache import CacheKey, Store
from irx.errors import BadOption
from irx.ir.program import Program
from irx.ledger import DROPPED, KEPT, Ledger, Row
from irx.pipeline.latency import Latency
from irx.pipeline.search.candidate import Found
from irx.pipeline.search.hunt import Hunt
from irx.pipeline.search.journal import Journal
from irx.pipeline.search.knapsack import Option, knapsack
from irx.pipeline.search.levels import Unit, spelled
from irx.pipeline.search.outcome import Measure, Outcome, share, unusable
from irx.pipeline.search.settings import Search
from irx.pipeline.search.settle import settle

UNITS = [Unit("depth", ("a1", "a2", "a3")), Unit("cache", ("b1", "b2")), Unit("weights", ("c1", "c2", "c3"))]
# KL and the part of the time that is left, of every level alone.
ALONE = {
    "a1": (0.02, 0.9),
    "a2": (0.05, 0.8),
    "a3": (0.2, 0.6),
    "b1": (0.001, 0.95),
    "b2": (0.03, 0.85),
    "c1": (0.004, 0.7),
    "c2": (0.02, 0.5),
    "c3": (0.09, 0.4),
}
BUDGET = Budget(kl=0.06)


def plain(text: str, strain: float = 0.0, alone: dict[str, tuple[float, float]] = ALONE) -> Outcome:
    """Damages add up, and `strain` comes with every pass beside others; times multiply."""
    levels = text.split(" | ") if text else []
    damage = sum(alone[level][0] for level in levels) + strain * max(len(levels) - 1, 0)
    return Outcome(0.1 * math.prod(alone[level][1] for level in levels), {"kl": damage})


def strained(text: str) -> Outcome:
    """Damages are worse together, so that the warm start is outside."""
    return plain(text, 0.01)


def best_of_all(measure: Measure, budget: Budget = BUDGET) -> float:
    """The least time of all configurations inside the budget."""
    every = itertools.product(*(range(len(unit.levels) + 1) for unit in UNITS))
    outcomes = [measure(spelled(UNITS, configuration)) for configuration in every]
    return min(one.seconds for one in outcomes if share(one, budget, measure("")) <= 1)


def clock_of(step: float) -> Callable[[], float]:
    """A clock that goes on by `step` seconds whenever it is asked."""
    count = itertools.count()
    return lambda: step * next(count)


@pytest.mark.parametrize("seed", range(5))
def test_the_knapsack_equals_brute_force(seed: int) -> None:
    draw = random.Random(seed)
    units = [[Option(level, draw.random(), draw.random()) for level in (1, 2, 3)] for _ in range(6)]
    choices = list(itertools.product(*([Option(0, 0.0, 0.0), *options] for options in units)))
    allowed = 0.8
    inside = [choice for choice in choices if sum(option.damage for option in choice) <= allowed]
    best = max(inside, key=lambda choice: sum(option.gain for option in choice))
    assert knapsack(units, allowed) == tuple(option.level for option in best)


def test_the_knapsack_may_leave_everything() -> None:
    assert knapsack([[Option(1, 0.5, 1.0)], [Option(1, 0.1, -1.0)]], 0.4) == (0, 0)
    assert knapsack([], 1.0) == ()


@pytest.mark.parametrize("measure", [plain, strained])
def test_the_fastest_configuration_is_found(measure: Measure) -> None:
    found = Hunt(UNITS, measure, BUDGET).run()
    assert found.ranked[0].outcome.seconds == pytest.approx(best_of_all(measure))
    assert found.ranked[-1].text == ""


def test_the_last_candidates_are_timed_again() -> None:
    """What was best by times of different minutes is not, and the unchanged program takes longer as well."""
    best = Hunt(UNITS, plain, BUDGET).run().ranked[0]

    def again(texts: Sequence[str]) -> dict[str, Latency]:
        return {text: Latency(plain(text).seconds * (3 if text == best.text else 2), 1e-3) for text in texts}

    found = Hunt(UNITS, plain, BUDGET, again=again).run()
    assert found.ranked[0].text != best.text
    assert found.ranked[0].outcome.seconds == 2 * plain(found.ranked[0].text).seconds
    assert (found.ranked[-1].text, found.ranked[-1].outcome.seconds) == ("", 0.2)
    assert any("in turns" in note for note in found.notes)
    silent = Hunt(UNITS, plain, BUDGET, again=lambda texts: {}).run()
    assert silent.ranked[0].text == best.text and not any("in turns" in note for note in silent.notes)


@pytest.mark.parametrize("seed", range(4))
def test_the_parent_is_always_inside_and_never_worsens(seed: int) -> None:
    hunt = Hunt(UNITS, strained, BUDGET, Search(seed=seed, population=2))
    hunt.run()
    assert len(hunt.parents) > 2
    assert all(parent.inside for parent in hunt.parents), "the budget is constant"
    fitness = [parent.fitness for parent in hunt.parents]
    assert fitness == sorted(fitness, reverse=True)


def test_the_evolution_improves_on_a_misleading_warm_start() -> None:
    """Alone b2 looks good; beside others it ruins the model, which no sum of damages says."""

    def clashing(text: str) -> Outcome:
        found = plain(text)
        ruined = "b2" in text and "|" in text
        return Outcome(found.seconds, {"kl": 1.0}) if ruined else found

    cheap = {**ALONE, "b2": (0.001, 0.5)}
    hunt = Hunt(UNITS, lambda text: clashing(text) if "b2" not in text else _cheap(clashing, text, cheap), BUDGET)
    found = hunt.run()
    starts = [one for one in hunt.seen.values() if "b2" in one.text and "|" in one.text]
    assert starts and not any(one.inside for one in starts), "the warm start was outside"
    assert found.ranked[0].text == "a1 | b1 | c2"


def _cheap(clashing: Measure, text: str, alone: dict[str, tuple[float, float]]) -> Outcome:
    found = plain(text, alone=alone)
    return Outcome(found.seconds, clashing(text).figures if "|" in text else found.figures)


def test_a_unit_without_effect_is_dropped_first() -> None:
    free = {**ALONE, "b1": (0.0, 0.9), "b2": (0.0, 0.8)}
    hunt = Hunt(UNITS, lambda text: plain(text, alone=free), Budget(kl=0.003), Search(minutes=60))
    found = hunt.run()
    assert found.ranked[0].text == "b2", "and nothing that costs fits"
    wider = Hunt(UNITS, lambda text: plain(text, alone=free), BUDGET).run()
    assert "b2" in wider.ranked[0].text


def test_equal_seeds_search_alike() -> None:
    def trace(seed: int) -> list[str]:
        asked: list[str] = []

        def measure(text: str) -> Outcome:
            asked.append(text)
            return strained(text)

        Hunt(UNITS, measure, BUDGET, Search(seed=seed, population=2)).run()
        return asked

    assert trace(3) == trace(3)
    assert len({tuple(trace(seed)) for seed in range(5)}) > 1, "the seed decides something"


@pytest.mark.parametrize("budget", [Budget(kl=0), Budget(cosine=1)])
def test_a_budget_of_zero_gives_the_exact_program(budget: Budget) -> None:
    free = dict.fromkeys(ALONE, (0.0, 0.5))
    asked: list[str] = []

    def measure(text: str) -> Outcome:
        asked.append(text)
        return plain(text, alone=free)

    found = Hunt(UNITS, measure, budget).run()
    assert [one.text for one in found.ranked] == [""]
    assert asked == [""]


@pytest.mark.parametrize("seconds", [0, 5, 12, 40])
def test_the_limit_ends_a_search_with_what_it_has(seconds: float) -> None:
    """Every candidate takes a second or more by this clock."""
    hunt = Hunt(UNITS, strained, BUDGET, Search(minutes=seconds / 60), clock_of(1.0))
    found = hunt.run()
    assert len(hunt.seen) <= seconds + 1
    assert found.ranked[-1].text == ""
    assert seconds < 5 or found.ranked[0].text, "early on there is something to use"
    assert all(one.inside for one in found.ranked)
    assert "limit" in found.notes[0] or seconds == 40


def test_a_killed_search_goes_on_where_it_was(tmp_path: Path) -> None:
    key, asked = CacheKey("search", "model"), list[str]()

    def dying(after: int) -> Measure:
        def measure(text: str) -> Outcome:
            if len(asked) == after:
                raise KeyboardInterrupt
            asked.append(text)
            return strained(text)

        return measure

    for after in (6, 11):
        with pytest.raises(KeyboardInterrupt):
            Hunt(UNITS, Journal(dying(after), key, Store(tmp_path)), BUDGET).run()
    journal = Journal(dying(10**6), key, Store(tmp_path))
    found = Hunt(UNITS, journal, BUDGET).run()
    assert len(asked) == len(set(asked)), "nothing was measured twice"
    assert journal.measured == len(asked) - 11
    assert found == Hunt(UNITS, strained, BUDGET).run()
    again = Journal(dying(0), key, Store(tmp_path))
    assert Hunt(UNITS, again, BUDGET).run() == found
    other = Journal(strained, CacheKey("search", "another model"), Store(tmp_path))
    Hunt(UNITS, other, BUDGET).run()
    assert other.measured == len(asked), "what is known of one model says nothing of another"


@pytest.mark.parametrize("killed", [2, 4])
def test_a_search_that_goes_on_has_the_time_that_was_left(killed: int, tmp_path: Path) -> None:
    """Time passes only while something is measured."""
    now, asked = [0.0], list[str]()

    def measure(text: str) -> Outcome:
        if len(asked) == killed:
            raise KeyboardInterrupt
        asked.append(text)
        now[0] += 1.0
        return strained(text)

    def hunted(key: str) -> Found:
        journal = Journal(measure, CacheKey("search", key), Store(tmp_path), lambda: now[0])
        return Hunt(UNITS, journal, BUDGET, Search(minutes=6 / 60), lambda: now[0] + journal.earlier).run()

    with pytest.raises(KeyboardInterrupt):
        hunted("killed")
    killed = -1
    found = hunted("killed")
    assert "limit" in found.notes[0]
    assert now == [6.0], "both took together what one search has"
    assert hunted("killed") == found
    assert now == [6.0]
    assert hunted("not killed") == found


def test_the_journal_keeps_what_cannot_be_used(tmp_path: Path) -> None:
    outcomes = {"": Outcome(0.1, {"kl": 0.0}), "a1": unusable("refused"), "b1": Outcome(0.05, {"kl": math.nan})}
    key = CacheKey("search", "model")
    first = Journal(outcomes.__getitem__, key, Store(tmp_path))
    assert [first(text) for text in outcomes] == list(outcomes.values())
    again = Journal({}.__getitem__, key, Store(tmp_path))
    assert again("a1") == outcomes["a1"]
    assert math.isnan(again("b1").figures["kl"])
    with pytest.raises(KeyError):
        again("a2")


def test_a_first_look_spares_what_is_far_outside() -> None:
    looked, asked = list[str](), list[str]()

    def glance(text: str) -> Outcome:
        looked.append(text)
        return plain(text)

    def measure(text: str) -> Outcome:
        asked.append(text)
        return plain(text)

    hunt = Hunt(UNITS, measure, BUDGET, glance=glance)
    found = hunt.run()
    assert found.ranked[0].outcome.seconds == pytest.approx(best_of_all(plain))
    assert {"a3", "c3"} <= set(looked) - set(asked), "more than all of the budget"
    assert all(one.share > 1 for one in hunt.seen.values() if one.rough)
    assert not any(one.rough for one in (*found.front, *found.usable))
    assert "ruled out by a first look" in found.notes[0]


def test_what_a_repair_cannot_bring_back_is_not_repaired() -> None:
    """a1 alone takes five times the budget, or three and a half times; repaired it takes a part of that."""
    for damage, asks in ((0.3, False), (0.2, True)):
        looked: list[str] = []

        def glance(text: str, damage: float = damage, looked: list[str] = looked) -> Outcome:
            looked.append(text)
            return Outcome(0.05, {"kl": damage if "repair-output" not in text else damage / 5})

        measure: Measure = lambda text: Outcome(0.05 if text else 0.1, {"kl": 0.04 if text else 0.0})  # noqa: E731
        found = Hunt([Unit("depth", ("a1 | repair-output",))], measure, BUDGET, glance=glance).run()
        assert ("a1 | repair-output" in looked, bool(found.ranked[0].text)) == (asks, asks)


def test_the_best_of_every_family_is_told() -> None:
    notes = found_plain().notes
    assert sum("depth alone: " in note or "cache alone: " in note for note in notes) == 2
    alone = Hunt([UNITS[2]], plain, BUDGET).run()
    assert "search: the best is that of weights alone: no other family gained beside it" in alone.notes
    none = Hunt([Unit("depth", ("a3",))], plain, BUDGET).run()
    assert "search: depth alone: nothing is faster inside the budget" in none.notes


def test_levels_that_cannot_be_used_are_stepped_over() -> None:
    def broken(text: str) -> Outcome:
        return unusable("nothing matches") if "c1" in text or "b1" in text else plain(text)

    found = Hunt(UNITS, broken, BUDGET).run()
    assert found.ranked[0].text == "b2 | c2"
    assert "search: unusable: c1: nothing matches" in found.notes
    assert "2 of them unusable" in found.notes[0]


def test_the_front_and_the_shares() -> None:
    found = Hunt(UNITS, plain, BUDGET).run()
    assert found.front[0].text == ""
    pairs = [(one.share, -one.outcome.seconds) for one in found.front]
    assert pairs == sorted(pairs) and len(pairs) > 3
    assert any("ms a step" in note and "% of the budget" in note for note in found.notes)
    base = Outcome(1.0, {"kl": 0.0, "top1": 1.0, "own": 2.0})
    both = Budget(kl=0.1, top1=0.9)
    assert share(Outcome(1.0, {"kl": 0.05, "top1": 0.92}), both, base) == pytest.approx(0.8)
    assert share(Outcome(1.0, {"kl": math.nan, "top1": 1.0}), both, base) == math.inf
    own = Budget(metric=_own, max=3.0)
    assert share(Outcome(1.0, {"_own": 2.5}), own, Outcome(1.0, {"_own": 2.0})) == pytest.approx(0.5)


def _own(model: object) -> float:
    return 0.0


def rows(text: str, outside: set[str]) -> Ledger:
    names = text.split(" | ") if text else []
    found = [Row(0, "cse", "normalize", "exact", DROPPED)]
    return Ledger(
        [
            *found,
            *(Row(1, name, "depth", "lossy", DROPPED if text in outside else KEPT, reason="over") for name in names),
        ]
    )


def found_plain() -> Found:
    return Hunt(UNITS, plain, BUDGET).run()


def test_held_out_data_decide() -> None:
    found, program = found_plain(), Program("empty", {})
    tried: list[str] = []

    def compile(text: str) -> tuple[Program, Ledger]:
        tried.append(text)
        return program, rows(text, {found.ranked[0].text})

    _, ledger = settle(found, compile, BUDGET)
    assert tried[0] == found.ranked[0].text
    second = next(one for one in found.ranked if one.share < found.ranked[0].share)
    assert tried[1:] == [second.text]
    assert ledger.notes[-1] == f"search: chosen: {second.text}"
    assert "outside on held-out data" in ledger.notes[-2]


def test_figures_on_held_out_data_come_before_compiling() -> None:
    found, compiled = found_plain(), list[str]()

    def compile(text: str) -> tuple[Program, Ledger]:
        compiled.append(text)
        return Program("empty", {}), rows(text, set())

    first = found.ranked[0].text
    _, ledger = settle(found, compile, BUDGET, lambda text: {"kl": 0.07 if text == first else 0.05})
    assert compiled[0] != first and len(compiled) == 1
    assert f"search: outside on held-out data: {first} (kl 0.07 of 0.06)" in ledger.notes


def test_what_is_over_by_half_says_that_a_third_less_is_needed() -> None:
    found, tried = found_plain(), list[str]()

    def confirm(text: str) -> dict[str, float]:
        tried.append(text)
        return {"kl": 0.09 if len(tried) == 1 else 0.05}

    settle(found, lambda text: (Program("empty", {}), rows(text, set())), BUDGET, confirm)
    first = found.ranked[0]
    enough = [one for one in found.ranked if one.share < first.share / 1.5]
    assert tried == [first.text, enough[0].text] and found.ranked.index(enough[0]) > 1


def test_where_nothing_holds_the_program_stays_as_it_is() -> None:
    found = found_plain()
    every = {one.text for one in found.ranked}
    _, ledger = settle(found, lambda text: (Program("empty", {}), rows(text, every)), BUDGET)
    assert ledger.notes[-1] == "search: chosen: nothing lossy"
    free = Hunt(UNITS, lambda text: plain(text, alone=dict.fromkeys(ALONE, (0.0, 0.9))), BUDGET).run()
    _, ledger = settle(free, lambda text: (Program("empty", {}), rows(text, {one.text for one in free.ranked})), BUDGET)
    assert ledger.notes[-1] == "search: chosen: nothing lossy", "also behind a failure that cost nothing before"


def test_settings_that_no_search_can_have() -> None:
    with pytest.raises(BadOption, match="minutes"):
        Search(minutes=-1)
    with pytest.raises(BadOption, match="population"):
        Search(population=0)


def test_of_what_is_equally_fast_the_closest_is_taken() -> None:
    """The band of noise decides what is equally fast, up to three parts of a hundred."""

    def measure(text: str) -> Outcome:
        seconds = {"": 1.0, "a1": 0.5, "b1": 0.49, "c1": 0.4}.get(text, 2.0)
        return Outcome(seconds, {"kl": {"": 0.0, "a1": 0.01, "b1": 0.04}.get(text, 1.0)}, noise=0.02)

    assert Hunt(UNITS, measure, BUDGET).run().ranked[0].text == "a1"
    assert Hunt(UNITS, lambda text: replace(measure(text), noise=0.0), BUDGET).run().ranked[0].text == "b1"


def test_fine_units_come_behind_a_first_answer() -> None:
    asked: list[str] = []

    def measure(text: str) -> Outcome:
        asked.append(text)
        return plain(text)

    units = [UNITS[0], replace(UNITS[1], fine=True), UNITS[2]]
    found = Hunt(units, measure, BUDGET).run()
    assert found.ranked[0].outcome.seconds == pytest.approx(best_of_all(plain))
    assert asked.index("b1") > max(asked.index(level) for level in ("a1", "a2", "c2", "a1 | c2"))
    assert "search: a first answer after" in found.notes[1]


def test_the_points_of_a_search_are_in_the_ledger() -> None:
    found = found_plain()
    _, ledger = settle(found, lambda text: (Program("empty", {}), rows(text, set())), BUDGET)
    assert len(ledger.points) == len(found.usable) > 10
    assert [one.text for one in ledger.points if one.chosen] == [found.ranked[0].text]
    assert {one.text for one in ledger.points if one.front} == {one.text for one in found.front}
