from irx.bench.timing import SETTLE, WARMUP, Spread, Timing, interleave, spread


def test_all_candidates_take_turns() -> None:
    calls: list[str] = []
    timings = interleave({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=4, turn=0)
    assert calls[: 2 * WARMUP] == ["a"] * WARMUP + ["b"] * WARMUP, "the calls that do not count come first"
    length = SETTLE + 2
    turns = ["".join(calls[i : i + length]) for i in range(2 * WARMUP, len(calls), length)]
    assert sorted(turns) == ["a" * length] * 4 + ["b" * length] * 4
    rounds = [turns[i][0] + turns[i + 1][0] for i in range(0, 8, 2)]
    assert set(rounds) == {"ab", "ba"}, "the order changes from round to round"
    assert all(timing.rounds == 4 and timing.low <= timing.median <= timing.high for timing in timings.values())


def test_spread() -> None:
    assert spread([4.0, 1.0, 3.0, 2.0, 5.0]) == Spread(3.0, 2.0, 4.0)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0)


def test_a_timing_as_text() -> None:
    assert str(Timing(0.0015, 0.001, 0.002, 12)) == "1.50 ms (1.00 to 2.00, 12 rounds)"
