"""Races: who is missing, who is wrong, and what is claimed of given times. Nothing here is timed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from irx.bench import race
from irx.bench.baselines.absent import Absent
from irx.bench.lab import Lab
from irx.bench.race import Candidate, Race, Ready, Row
from irx.bench.result import Result, verdict
from irx.bench.timing import Spread

LAB = Lab(Path("none"), "torch")


def gives(*values: float, size: int = 0) -> Any:
    return lambda lab: Ready(lambda: torch.tensor(values), size)


def absent(lab: Lab) -> Ready:
    raise Absent("it is not installed")


def measured(monkeypatch: pytest.MonkeyPatch, seconds: Mapping[str, list[float]], rows: list[Row]) -> list[Result]:
    """The results of rows over candidates that take these seconds."""
    asked: list[set[str]] = []

    def samples(candidates: Mapping[str, Any], **_: Any) -> dict[str, list[float]]:
        asked.append(set(candidates))
        return {name: list(seconds[name]) for name in candidates}

    monkeypatch.setattr(race, "samples", samples)
    monkeypatch.setattr(race, "reader", lambda size, threads: (lambda: None, "nothing"))
    candidates = {
        "eager": Candidate(gives(1.0, 2.0), 0.0),
        "close": Candidate(gives(1.0, 2.01, size=race.RING), 0.01),
        "off": Candidate(gives(1.0, 2.1), 0.01),
        "other shape": Candidate(gives(1.0), 0.01),
        "gone": Candidate(absent, 0.0),
        "broken": Candidate(lambda lab: Ready({}["step"]), 0.0),
    }
    results = list(Race("some", "some rows", "eager", candidates, rows).measure(LAB))
    assert asked == [{"eager", "close", "read"}], "what is wrong or absent is not timed"
    return results


TIMES = {"eager": [4.0, 4.0, 4.0, 8.0], "close": [2.0, 2.0, 2.0, 1.0], "read": [0.5, 0.25, 1.0, 1.0]}


def test_ratios_are_taken_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    (result,) = measured(monkeypatch, TIMES, [Row("a", "close", ("eager",), 2.0)])
    assert result.figure == Spread(2.0, 2.0, 3.5)
    assert result.verdict == "holds"
    assert result.floor == 0.25, "as many bytes as the ring that was read"
    assert result.error == pytest.approx(0.005, rel=1e-3)
    assert result.cells()["measured"] == "2.00x (2.00x to 3.50x)"
    assert result.cells()["against"] == "eager 4000.00 ms"
    assert result.line() == "a: holds, 2.00x (2.00x to 3.50x)"


def test_the_faster_of_those_that_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    result, nobody, own = measured(
        monkeypatch,
        TIMES,
        [
            Row("a", "close", ("eager", "gone"), 2.1),
            Row("b", "close", ("gone",), 2.0),
            Row("c", "gone", ("eager",), 2.0),
        ],
    )
    assert (result.verdict, result.rival, result.note) == ("below", "eager", "gone absent: it is not installed")
    assert (nobody.verdict, nobody.figure, nobody.note) == ("absent", None, "gone: it is not installed")
    assert (own.verdict, own.note) == ("absent", "gone: it is not installed")
    assert own.line() == "c: absent, gone: it is not installed"


def test_wrong_results_have_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs, shape, broken = measured(
        monkeypatch,
        TIMES,
        [
            Row("a", "off", ("eager",), 1.0),
            Row("b", "close", ("off",), 1.0),
            Row("c", "other shape", ("eager",), 1.0),
            Row("d", "broken", ("eager",), 1.0),
        ],
    )
    assert [r.verdict for r in (ours, theirs, shape, broken)] == ["wrong"] * 4
    assert broken.note == "broken: it fails with KeyError: 'step'"
    assert ours.note == "off: it is off by 5.0e-02 of the largest value, more than 1e-02"
    assert shape.note == "other shape: its result has shape [1], not [2]"


def test_a_share_is_of_the_best_round(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {**TIMES, "eager": [1.0, 0.9, 1.2, 1.1], "close": [1.0, 1.0, 1.0, 1.0]}
    (result,) = measured(monkeypatch, times, [Row("a", "close", ("eager",), 0.9, percent=True)])
    assert result.figure == Spread(0.9, 0.9, 0.9)
    assert result.note == "of the eager of the same round 105 % (98 to 112)"
    assert result.cells()["wanted"] == "90 %"


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        (Spread(2.0, 1.9, 9.0), "holds"),
        (Spread(2.0, 1.89, 9.0), "below"),
        (Spread(1.99, 1.99, 2.5), "below"),
    ],
)
def test_when_a_row_holds(figure: Spread, expected: str) -> None:
    assert verdict(figure, 2.0) == expected
    assert verdict(figure, None) == "shown"
