"""Tuning runs over kernels whose times are known, with planted faults."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from irx.errors import BadOption, DeviceNotFound, UnknownOption
from irx.target import Device, find_device, host_cpu
from irx.tuning import Database, Decision, Effort, Fingerprint, Schedules, TaskReport, tune
from tests.repository.tree import ROOT
from tests.tuning import toys

EFFORT = Effort(trials=30, seconds=300.0, limit=60.0)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "schedules")


@pytest.fixture
def device() -> Device:
    return host_cpu()


def test_the_fastest_is_found_and_kept(database: Database, device: Device) -> None:
    task = toys.task(toys.space(), {1: 1.0, 2: 0.9, 4: 0.5, 8: 0.7})
    heard: list[TaskReport] = []
    report = tune([task], device, effort=EFFORT, database=database, progress=heard.append, versions={"llvm": "22"})
    assert heard == report.tasks
    assert report.tasks[0].decision is Decision.FASTER
    assert report.tasks[0].gain == pytest.approx(2.0)
    (row,) = database.rows()
    assert row.schedule == toys.schedule(4)
    assert (row.seconds, row.default_seconds, row.trials, row.refused) == (0.5, 1.0, 8, 0)
    assert row.device == Fingerprint.of(device)
    assert row.versions["llvm"] == "22"
    assert 0 < row.noise < 0.01
    assert Schedules(device, database, []).find(task)[0] == toys.schedule(4)


def test_faulty_candidates_are_refused_and_named(database: Database, device: Device) -> None:
    """The planted ones would all be the fastest by far."""
    faults = (toys.WRONG, toys.CRASHING, toys.RAISING, toys.ENDING, toys.ODD)
    times = {1: 1.0, 2: 0.8, **dict.fromkeys(faults, 0.001)}
    task = toys.task(toys.space(1, 2, *faults), times)
    report = tune([task], device, effort=EFFORT, database=database)
    assert report.tasks[0].best is not None
    assert report.tasks[0].best.schedule == toys.schedule(2)
    assert len(report.tasks[0].refused) == 2 * len(faults)
    assert "toy[n=24, f64]: slow=False, tile=3: its result is off" in "\n".join(report.remarks())
    assert database.rows()[0].refused == 2 * len(faults)


def test_a_hanging_candidate_costs_its_limit(database: Database, device: Device) -> None:
    task = toys.task(toys.space(1, 2, toys.HANGING), {1: 1.0, 2: 0.5})
    report = tune([task], device, effort=Effort(4, 300.0, 2.0), database=database)
    everything = tune([task], device, effort=Effort(6, 300.0, 2.0), database=database)
    assert report.tasks[0].decision is Decision.FASTER
    assert any("took longer than 2 s" in line for line in everything.remarks())
    assert database.rows()[0].schedule == toys.schedule(2)


def test_a_gain_within_the_noise_keeps_the_default(database: Database, device: Device) -> None:
    task = toys.task(toys.space(), {1: 1.0, 2: 0.98, 4: 0.99, 8: 1.0}, args={"spread": 0.05})
    (done,) = tune([task], device, effort=EFFORT, database=database).tasks
    assert done.decision is Decision.DEFAULT
    (row,) = database.rows()
    assert row.schedule == task.default()
    clear = replace(task, args={**task.args, "spread": 0.001})
    assert tune([clear], device, effort=EFFORT, database=database).tasks[0].decision is Decision.FASTER


def test_a_default_that_is_wrong_loses_to_what_is_right(database: Database, device: Device) -> None:
    task = toys.task(toys.space(toys.WRONG, 4, default=toys.WRONG), {toys.WRONG: 0.1, 4: 1.0})
    (done,) = tune([task], device, effort=EFFORT, database=database).tasks
    assert done.decision is Decision.FASTER
    assert done.gain is None
    assert database.rows()[0].schedule == toys.schedule(4)
    assert database.rows()[0].default_seconds is None


@pytest.mark.parametrize(("fickle", "winner", "decision"), [(4, 1, Decision.DEFAULT), (1, 4, Decision.FASTER)])
def test_what_is_right_only_once_is_refused(
    fickle: int, winner: int, decision: Decision, database: Database, device: Device, tmp_path: Path
) -> None:
    more = {"fickle": fickle, "log": str(tmp_path / "log")}
    (done,) = tune([toys.task(toys.space(1, 4), {4: 0.5}, args=more)], device, effort=EFFORT, database=database).tasks
    assert done.decision is decision
    assert [trial.schedule for trial in done.refused] == [toys.schedule(fickle)]
    assert database.rows()[0].schedule == toys.schedule(winner)


def test_the_default_is_tried_even_without_time(database: Database, device: Device) -> None:
    (done,) = tune([toys.task(toys.space())], device, effort=Effort(9, 0.0, 60.0), database=database).tasks
    assert [trial.schedule for trial in done.trials] == [toys.schedule(1)]


def test_without_a_working_candidate_nothing_is_kept(database: Database, device: Device) -> None:
    task = toys.task(toys.space(toys.WRONG, default=toys.WRONG))
    (done,) = tune([task], device, effort=EFFORT, database=database).tasks
    assert done.decision is Decision.NOTHING
    assert database.rows() == []
    assert len(done.refused) == 2


def test_picks_and_earlier_winners_are_tried_early(database: Database, device: Device, tmp_path: Path) -> None:
    log = tmp_path / "log"
    task = toys.task(toys.space(*range(11, 31), default=11), {30: 0.5}, args={"log": str(log)})
    picked = replace(task, picks=(toys.schedule(30),))
    tune([picked], device, effort=Effort(2, 300.0, 60.0), database=database)
    assert database.rows()[0].schedule == toys.schedule(30)
    log.unlink()
    tune([task], device, effort=Effort(2, 300.0, 60.0), database=database)
    assert log.read_text().splitlines()[1].endswith("slow=False, tile=30")


def test_the_seed_decides_the_order(device: Device, tmp_path: Path) -> None:
    tried = []
    for number, seed in enumerate((0, 0, 1)):
        task = toys.task(toys.space(*range(11, 31), default=11))
        report = tune(
            [task], device, effort=Effort(8, 300.0, 60.0), database=Database(tmp_path / str(number)), seed=seed
        )
        tried.append([trial.schedule for trial in report.tasks[0].trials])
    assert tried[0] == tried[1] != tried[2]


def test_what_is_used_most_is_tuned_first_and_equal_kernels_once(database: Database, device: Device) -> None:
    often, seldom = toys.task(toys.space(), name="often", uses=30), toys.task(toys.space(), name="seldom")
    report = tune([seldom, often, seldom], device, effort=Effort(1, 300.0, 60.0), database=database)
    assert [done.task for done in report.tasks] == [often, seldom]


def test_without_time_kernels_are_skipped_by_name(database: Database, device: Device) -> None:
    tasks = [toys.task(toys.space(), name=name) for name in ("a", "b")]
    report = tune(tasks, device, effort=EFFORT, database=database, seconds=1e-9)
    assert report.tasks == []
    assert report.to_json()["skipped"] == ["a[n=24, f64]", "b[n=24, f64]"]
    with pytest.raises(BadOption):
        tune(tasks, device, database=database, seconds=0)


def test_an_unknown_effort_names_the_known_ones(device: Device) -> None:
    with pytest.raises(UnknownOption, match="quick"):
        tune([], device, effort="quik")


def test_another_device_cannot_be_measured_here() -> None:
    with pytest.raises(DeviceNotFound, match="a100"):
        tune([], find_device("a100"))


def test_a_report_is_plain_data(database: Database, device: Device) -> None:
    task = toys.task(toys.space(1, toys.WRONG), where="model.layers.0")
    data = json.loads(json.dumps(tune([task], device, effort=EFFORT, database=database).to_json()))
    (kernel,) = data["kernels"]
    assert kernel["kernel"] == "toy[n=24, f64]"
    assert kernel["decision"] == "default"
    assert {trial["refusal"] != "" for trial in kernel["trials"]} == {True, False}


KILLED = """
from pathlib import Path
from irx.target import host_cpu
from irx.tuning import Database, Effort, tune
from tests.tuning import toys
done = toys.task(toys.space(1, 2), {2: 0.5}, name="done", uses=2)
stuck = toys.task(toys.space(toys.HANGING, default=toys.HANGING), name="stuck", args={"log": "LOG"})
tune([done, stuck], host_cpu(), effort=Effort(9, 300.0, 300.0), database=Database(Path("FOLDER")))
"""


def test_a_run_that_is_killed_leaves_a_usable_database(database: Database, device: Device, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = KILLED.replace("LOG", str(log)).replace("FOLDER", str(database.folder))
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT) as run:
        deadline = time.monotonic() + 120
        while not log.exists() or not log.read_text():
            assert time.monotonic() < deadline
            assert run.poll() is None
            time.sleep(0.02)
        run.kill()
    os.kill(int(log.read_text().split()[0]), signal.SIGKILL)
    task = toys.task(toys.space(1, 2), {2: 0.5}, name="done")
    assert Schedules(device, Database(database.folder), []).find(task)[0] == toys.schedule(2)
    tune([replace(task, key=replace(task.key, template="next"))], device, effort=EFFORT, database=database)
    assert {row.key.template for row in database.rows()} == {"done", "next"}
