from irx.tuning import Knob, Schedule, Space
from irx.tuning.climb import Climb

LINE = Space((Knob("x", tuple(range(40)), 5), Knob("y", tuple(range(40)), 5)))


def climb(space: Space, starts: list[Schedule], trials: int, seed: int = 0) -> list[Schedule]:
    """The schedules tried for a bowl with its bottom at (20, 12); x = 6 fails."""
    search, tried = Climb(space, starts, seed), []
    for _ in range(trials):
        schedule = search.next()
        if schedule is None:
            break
        tried.append(schedule)
        x, y = schedule["x"], schedule["y"]
        search.tell(schedule, None if x == 6 else 1.0 + abs(x - 20) + abs(y - 12))
    return tried


def test_starts_come_first_and_once() -> None:
    starts = [LINE.default(), Schedule(x=9, y=9), LINE.default(), Schedule(x=99, y=0)]
    assert climb(LINE, starts, 2) == [LINE.default(), Schedule(x=9, y=9)]
    assert climb(LINE, starts, 3)[2] not in starts


def test_it_finds_the_bottom_of_a_bowl() -> None:
    tried = climb(LINE, [LINE.default()], 150)
    assert Schedule(x=20, y=12) in tried
    assert len(set(tried)) == len(tried)


def test_a_start_that_fails_does_not_stop_it() -> None:
    assert Schedule(x=20, y=12) in climb(LINE, [Schedule(x=6, y=5)], 250)


def test_the_seed_decides_the_order() -> None:
    assert climb(LINE, [LINE.default()], 30) == climb(LINE, [LINE.default()], 30)
    assert climb(LINE, [LINE.default()], 30) != climb(LINE, [LINE.default()], 30, seed=1)


def test_a_small_space_is_tried_completely_and_then_over() -> None:
    small = Space((Knob("x", (4, 6, 20), 4), Knob("y", (5, 12), 5)))
    tried = climb(small, [small.default()], 100)
    assert set(tried) == set(small)
    assert len(tried) == 6
