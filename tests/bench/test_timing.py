from irx.bench.timing import Timing, interleave


def test_all_candidates_take_turns() -> None:
    calls: list[str] = []
    timings = interleave({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=4, passes=2, warmup=1)
    assert calls[:2] == ["a", "b"], "the calls that do not count come first"
    rounds = [calls[2 + 6 * i : 8 + 6 * i] for i in range(4)]
    for one in rounds:
        first, second = one[0], one[-1]
        assert one == [first] * 3 + [second] * 3
        assert {first, second} == {"a", "b"}
    assert {one[0] for one in rounds} == {"a", "b"}, "the order changes from round to round"
    assert all(timing.rounds == 4 and timing.low <= timing.median <= timing.high for timing in timings.values())


def test_a_timing_as_text() -> None:
    assert str(Timing(0.0015, 0.001, 0.002, 12)) == "1.50 ms (1.00 to 2.00, 12 rounds)"
