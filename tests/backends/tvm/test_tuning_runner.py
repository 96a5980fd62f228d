"""Tuning real kernels: tasks of a graph, candidates built, checked and timed in processes, and what compiling uses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import irx
from irx.backends.tvm import knobs, steps, tuning
from irx.backends.tvm.backend import BACKEND, CHOICES
from irx.backends.tvm.codegen import missing
from irx.cli import main
from irx.target import host_cpu
from irx.tuning import EFFORTS, Choice, Database, Effort, Fingerprint, Outcome, Row, Task, shipped, tune
from tests.backends.tvm.planting import planted, wrong

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

TEXT = """\
weight $w : f32[48, 64]
graph @forward(%x: f32[1, 64]) -> (y: f32[1, 48]) {
  %y = irx.linear(%x, $w)  // model.head @ net.py:4
  return %y
}
"""
PLANTED = "tests.backends.tvm.test_tuning_runner:run_with_a_fault"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IRX_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tasks() -> list[Task]:
    program = irx.parse(TEXT)
    return list(BACKEND.spaces(program, program.graphs["forward"], host_cpu()))


def another(task: Task) -> Mapping[str, Choice]:
    """A schedule that is not the default."""
    knob = next(knob for knob in task.space.knobs if len(knob.values) > 1)
    value = next(value for value in knob.values if value != knob.default)
    return task.space.default().replace(knob.name, value)


def run_with_a_fault(args: dict[str, Any], schedule: Mapping[str, Choice]) -> Outcome:
    """The runner, in a process in which one schedule makes wrong kernels."""
    fault = schedule["unroll"] == args["fault"]
    with patch.object(steps, "RULES", planted(wrong, "linear") if fault else steps.RULES):
        return tuning.run(args, schedule)  # type: ignore[arg-type]


def test_a_graph_has_a_task_for_every_kernel_with_choices() -> None:
    (task,) = (task for task in tasks() if task.key.template == "matvec")
    assert task.where == "model.head"
    assert task.args["sizes"] == {}
    assert set(task.space.default()) == {knob.name for knob in task.space.knobs}
    assert json.loads(json.dumps(dict(task.args))) == dict(task.args), "plain data, for another process"


def test_a_candidate_is_built_checked_and_timed() -> None:
    task = tasks()[0]
    for schedule in (task.default(), another(task)):
        outcome = tuning.run(dict(task.args), schedule)  # type: ignore[arg-type]
        assert outcome.refusal == ""
        assert 0 < outcome.error <= outcome.limit
        assert all(seconds > 0 for seconds in outcome.seconds)


def test_a_planted_wrong_schedule_is_refused_and_named(tmp_path: Path) -> None:
    (task,) = (task for task in tasks() if task.key.template == "matvec")
    unroll = next(knob for knob in task.space.knobs if knob.name == "unroll")
    fault = next(value for value in unroll.values if value != unroll.default)
    spoiled = replace(
        task, runner=PLANTED, args={**task.args, "fault": fault}, picks=(task.default().replace("unroll", fault),)
    )
    report = tune([spoiled], host_cpu(), effort=Effort(2, 300.0, 120.0), database=Database(tmp_path / "rows"))
    (done,) = report.tasks
    assert [trial.schedule["unroll"] for trial in done.refused] == [fault]
    (line,) = report.remarks()
    assert f"unroll={fault}" in line
    assert "its result is off" in line
    (row,) = Database(tmp_path / "rows").rows()
    assert row.schedule == task.default()


def choices(program: irx.ir.program.Program) -> dict[str, Any]:  # type: ignore[name-defined]
    blobs = BACKEND.build(program, program.graphs["forward"], host_cpu())
    found: dict[str, Any] = json.loads(blobs[CHOICES])
    return found


def test_compiling_uses_what_was_measured() -> None:
    task = tasks()[0]
    schedule = another(task)
    before = choices(irx.parse(TEXT))
    assert before["schedules"] == {}
    row = Row(Fingerprint.of(host_cpu()), task.key, schedule, 1.0, 0.01, 2.0, 9, 0, "2026-01-31")  # type: ignore[arg-type]
    Database().add(row)
    after = choices(irx.parse(TEXT))
    assert list(after["schedules"].values()) == [dict(schedule)]
    assert "measured" in next(iter(after["origins"].values()))


def test_the_command_tunes_a_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EFFORTS, "quick", Effort(2, 300.0, 300.0))  # a busy machine must not decide
    path = tmp_path / "model.irx"
    path.write_text(TEXT)
    assert main(["tune", str(path), "--target", "tvm:cpu", "--minutes", "0.001", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["kernels"]
    rows = Database().rows()
    assert {row.key for row in rows} <= {task.key for task in tasks()}
    assert rows
    assert all(row.seconds > 0 for row in rows)


def test_a_schedule_is_of_the_code_of_its_kernel() -> None:
    """What is said about the code makes no kernel another one."""
    source = 'X = 1\n"""What it is."""\n\n\ndef f(x: int) -> int:\n    """Docs."""\n    return x  # why\n'
    assert knobs._code(source) == "X=1deff(x:int)->int:returnx"
    assert knobs._code(source) == knobs._code(source.replace("Docs.", "Other\n\n    docs.").replace("why", "because"))
    assert knobs._code(source) != knobs._code(source.replace("X = 1", "X = 2"))
    assert "#" in knobs._code('F = "a # b"\n')


@pytest.mark.parametrize("row", [row for row in shipped() if row.device.kind == "cpu"], ids=lambda row: str(row.key))
def test_shipped_schedules_are_of_these_kernels(row: Row) -> None:
    """Where a template was changed, `irx tune` has to measure again, or what it had measured has to go."""
    assert row.key.version == knobs.version(row.key.template)
    assert not row.modelled
