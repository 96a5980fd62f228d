import random

import pytest

from irx.tuning import Knob, Schedule, Space

TILE = Knob("tile", (1, 2, 4, 8), 2)
ORDER = Knob("order", ("rows", "columns", "blocks"), "rows", ordered=False)
BOTH = Space((TILE, ORDER), lambda schedule: not (schedule["tile"] == 8 and schedule["order"] == "blocks"))


def test_schedules_are_data() -> None:
    schedule = Schedule({"tile": 4}, order="rows")
    assert schedule == Schedule(order="rows", tile=4)
    assert hash(schedule) == hash(Schedule(order="rows", tile=4))
    assert Schedule(schedule.to_json()) == schedule
    assert str(schedule) == "order=rows, tile=4"
    assert schedule.replace("tile", 8) == Schedule(order="rows", tile=8)
    assert schedule["tile"] == 4


def test_a_knob_knows_its_neighbours() -> None:
    assert TILE.neighbours(1) == (2,)
    assert TILE.neighbours(4) == (2, 8)
    assert TILE.neighbours(8) == (4,)
    assert ORDER.neighbours("columns") == ("rows", "blocks")


def test_true_is_not_one() -> None:
    assert not TILE.allows(True)
    assert not Knob("fast", (False, True), False).allows(0)


def test_a_default_outside_the_values_is_an_error() -> None:
    with pytest.raises(ValueError, match="'tile'"):
        Knob("tile", (1, 2), 3)
    with pytest.raises(ValueError, match="defaults"):
        Space((TILE,), lambda schedule: schedule["tile"] != 2)
    with pytest.raises(ValueError, match="same name"):
        Space((TILE, TILE))


def test_the_condition_bounds_the_space() -> None:
    everything = list(BOTH)
    assert len(everything) == 11
    assert BOTH.combinations == 12
    forbidden = Schedule(tile=8, order="blocks")
    assert forbidden not in everything
    assert not BOTH.allows(forbidden)
    assert forbidden not in list(BOTH.neighbours(Schedule(tile=4, order="blocks")))
    source = random.Random(0)
    assert {BOTH.sample(source) for _ in range(300)} == set(everything)


def test_neighbours_differ_in_one_step_of_one_knob() -> None:
    near = set(BOTH.neighbours(Schedule(tile=4, order="rows")))
    changed = [Schedule(tile=tile, order="rows") for tile in (2, 8)]
    changed += [Schedule(tile=4, order=order) for order in ("columns", "blocks")]
    assert near == set(changed)


def test_a_condition_that_nothing_else_meets_gives_no_sample() -> None:
    narrow = Space((Knob("n", tuple(range(10**6)), 0),), lambda schedule: schedule["n"] == 0)
    assert narrow.sample(random.Random(0)) in (None, Schedule(n=0))


def test_measured_choices_fit_a_space_that_grew() -> None:
    assert Space((TILE,)).adopt({"tile": 8}) == Schedule(tile=8)
    assert BOTH.adopt({"tile": 8}) == Schedule(tile=8, order="rows")  # a new knob
    assert Space((TILE,)).adopt({"tile": 8, "order": "rows"}) == Schedule(tile=8)  # a knob that is gone
    assert Space((TILE,)).adopt({"tile": 16}) is None  # a value that is gone
    assert BOTH.adopt({"tile": 8, "order": "blocks"}) is None


def test_a_space_without_knobs_has_one_schedule() -> None:
    assert list(Space()) == [Schedule()]
    assert Space().default() == Schedule()
    assert str(Schedule()) == "no choices"
