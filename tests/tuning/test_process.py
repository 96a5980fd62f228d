"""What happens to candidates that fail in every way a candidate can."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from irx.tuning import Outcome, Task
from irx.tuning.process import Worker
from irx.tuning.worker import GRACE
from tests.repository.tree import ROOT
from tests.tuning import toys

LIMIT = 60.0
FAULTS = (toys.WRONG, toys.CRASHING, toys.HANGING, toys.RAISING, toys.ENDING, toys.ODD)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return toys.task(toys.space(1, 2, *FAULTS), {1: 0.25}, args={"log": str(tmp_path / "log")})


def processes(task: Task) -> list[int]:
    return [int(line.split()[0]) for line in Path(task.args["log"]).read_text().splitlines()]


def test_a_candidate_is_tried_in_another_process(worker: Worker, task: Task) -> None:
    outcomes = [worker.attempt(task, toys.schedule(tile), LIMIT) for tile in (1, 2)]
    assert [outcome.refusal for outcome in outcomes] == ["", ""]
    assert outcomes[0].seconds[2] == 0.25
    first, second = processes(task)
    assert first == second != os.getpid()


@pytest.mark.parametrize(
    ("tile", "limit", "reason"),
    [
        (toys.CRASHING, LIMIT, "crashed with SIGSEGV: the candidate's last words"),
        (toys.HANGING, 0.2, "it took longer than 0.2 s"),
        (toys.RAISING, LIMIT, "ValueError: this tile does not divide"),
        (toys.ENDING, LIMIT, "ended with status 3"),
        (toys.ODD, LIMIT, "the runner gave str"),
    ],
)
def test_a_failure_is_an_outcome_and_the_next_gets_a_new_process(
    worker: Worker, task: Task, tile: int, limit: float, reason: str
) -> None:
    outcome = worker.attempt(task, toys.schedule(tile), limit)
    assert reason in outcome.failure
    assert outcome.refusal == outcome.failure
    assert not worker.attempt(task, toys.schedule(1), LIMIT).refusal
    failed, following = processes(task)
    assert failed != following
    with pytest.raises(ProcessLookupError):
        os.kill(failed, 0)


def test_a_wrong_result_is_refused_with_its_error(worker: Worker, task: Task) -> None:
    outcome = worker.attempt(task, toys.schedule(toys.WRONG), LIMIT)
    assert not outcome.failure
    assert "its result is off: error 0.163, at most 1e-06" in outcome.refusal


@pytest.mark.parametrize("runner", ["tests.tuning.nothing:run", "tests.tuning.toys:nothing", "nonsense"])
def test_a_runner_that_is_not_there_is_a_failure(worker: Worker, task: Task, runner: str) -> None:
    assert worker.attempt(replace(task, runner=runner), toys.schedule(1), LIMIT).failure


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome((), 0.0, 1.0),
        Outcome((0.0,), 0.0, 1.0),
        Outcome((float("nan"),), 0.0, 1.0),
        Outcome((1.0,), float("nan"), 1.0),
        Outcome((1.0,), 2.0, 1.0),
        Outcome(failure="no"),
    ],
)
def test_what_must_not_win(outcome: Outcome) -> None:
    assert outcome.refusal
    assert Outcome.from_json(outcome.to_json()).refusal == outcome.refusal


def test_what_may_win() -> None:
    assert not Outcome((1.0, 2.0), 1e-7, 1e-6).refusal


def test_a_candidate_that_hangs_without_an_owner_ends_by_itself(task: Task) -> None:
    schedule = toys.schedule(toys.HANGING).to_json()
    soon = 0.5 - GRACE
    request = json.dumps({"runner": task.runner, "args": dict(task.args), "schedule": schedule, "limit": soon})
    done = subprocess.run([sys.executable, "-m", "irx.tuning.worker"], input=request.encode(), cwd=ROOT, timeout=120)
    assert done.returncode == -signal.SIGALRM
    assert len(processes(task)) == 1


def test_a_stopped_worker_starts_again(task: Task) -> None:
    with Worker() as worker:
        assert not worker.attempt(task, toys.schedule(1), LIMIT).refusal
        worker.stop()
        worker.stop()
        assert not worker.attempt(task, toys.schedule(1), LIMIT).refusal
    first, second = processes(task)
    assert first != second
    for process in (first, second):
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
