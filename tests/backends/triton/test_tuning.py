"""Tuning without a GPU: spaces bounded by the device, the model's picks compiled and checked, rows that say so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import irx
from irx.backends.triton.backend import BACKEND, CHOICES
from irx.backends.triton.compiling import missing
from irx.backends.triton.knobs import VALUES, task
from irx.backends.triton.tuning import cut_down, model
from irx.errors import DeviceNotFound
from irx.target import devices, find_device
from irx.tuning import Database, Decision, Effort, Fingerprint, Row, Schedule, Task, tune
from irx.tuning.lookup import LIBRARY, shipped
from irx.tuning.tuner import Modeller

TEXT = """
program @small {
  size B in [1, 16]
  weight $w : bf16[192, 576]
  region @r(%x: bf16[B, 576], %w: bf16[192, 576]) -> (y: bf16[B, 192]) {
    %y = irx.linear(%x, %w) : bf16[B, 192]
    return %y
  }
  graph @forward(%x: bf16[B, 576]) -> (y: bf16[B, 192]) {
    %y = irx.fusion(%x, $w) {body=@r} : bf16[B, 192]
    return %y
  }
}
"""
STEP = """
program @step {
  size B in [1, 16]
  region @r(%x: f32[B, 2, 1, 16], %pos: i64[B, 1], %kv: KV) -> (y: f32[B, 2, 1, 16], kv1: KV) {
    %kv1 = irx.kv_append(%kv, %x, %x, %pos) : KV
    %y = irx.kv_attention(%x, %kv1, %pos) {scale=0.25} : f32[B, 2, 1, 16]
    return %y, %kv1
  }
  graph @decode(%x: f32[B, 2, 1, 16], %pos: i64[B, 1], %kv0: KV) -> (y: f32[B, 2, 1, 16], kv0: KV) {
    %y, %kv1 = irx.fusion(%x, %pos, %kv0) {body=@r} : (f32[B, 2, 1, 16], KV)
    return %y, %kv1
  }
}
"""
A100 = find_device("a100")
EFFORT = Effort(trials=4, seconds=300.0, limit=60.0)
needs_triton = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def tasks() -> dict[str, Task]:
    """The tasks of the program, by the rows they are for."""
    program = irx.parse(TEXT)
    (graph,) = program.graphs.values()
    return {f"{t.key.template} {t.key.shape.rpartition('rows')[2]}": t for t in BACKEND.spaces(program, graph, A100)}


def test_every_kernel_of_a_graph_has_a_space_and_better_picks() -> None:
    found = tasks()
    assert list(found) == ["matvec 1", "matvec 2", "matvec 4", "gemm 16", "gemm "]
    few = found["gemm 16"]
    assert few.picks
    assert all(few.space.allows(pick) and pick != few.default() for pick in few.picks)


@pytest.mark.parametrize("name", sorted(name for name, device in devices().items() if device.is_gpu))
def test_spaces_leave_out_what_no_block_of_the_device_can_have(name: str) -> None:
    device = find_device(name)
    assert device.gpu is not None
    knobs = {"rows": 64, "columns": 64, "depth": 64, "split": 1, "stripe": 8, "persistent": 0, "warps": 4, "stages": 2}
    space = task(device, "gemm", "", knobs).space
    wide = Schedule({**knobs, "rows": 256, "depth": 512, "stages": 3})
    assert space.allows(space.default())
    assert space.allows(wide) is False  # 512 KiB on their way
    assert space.allows(Schedule({**knobs, "rows": 256, "columns": 256, "warps": 1})) is False
    most = max(value for value in VALUES["gemm"]["warps"] if isinstance(value, int))
    assert space.allows(Schedule({**knobs, "warps": most}))


@needs_triton
def test_a_kernel_is_chosen_by_the_model_and_the_row_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRX_CACHE_DIR", str(tmp_path))
    one = tasks()["gemm 16"]
    report = tune([one], A100, effort=EFFORT, database=Database())
    assert report.tasks[0].decision is Decision.FASTER, report.remarks()
    (row,) = Database().rows()
    assert row.modelled
    assert row.schedule in one.picks
    assert row.default_seconds is not None
    assert row.seconds < row.default_seconds
    program = irx.parse(TEXT)
    choices = json.loads(BACKEND.build(program, program.graphs["forward"], A100)[CHOICES])
    assert list(choices["schedules"].values()) == [dict(row.schedule)]
    assert "modelled" in next(iter(choices["origins"].values()))


@needs_triton
def test_a_step_over_a_cache_whose_slots_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRX_CACHE_DIR", str(tmp_path))
    program = irx.parse(STEP.replace("KV", "kv<heads=2, dim=16, dense, f32, prefix=shared>"))
    (one,) = (t for t in BACKEND.spaces(program, program.graphs["decode"], A100) if "decode" in t.key.template)
    outcome = model(dict(one.args), one.default().replace("split", 2).replace("tokens", 16))
    assert outcome.seconds
    assert outcome.refusal == ""


@needs_triton
def test_a_schedule_that_does_not_fit_is_refused() -> None:
    one = tasks()["gemm "]
    greedy = one.default().replace("rows", 256).replace("columns", 256).replace("warps", 4)
    outcome = Modeller().attempt(one, greedy, 60.0)
    assert "spills" in outcome.refusal or "a block" in outcome.refusal


def test_what_was_measured_outlasts_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, database = tasks()["gemm 16"], Database(tmp_path)
    measured = Row(Fingerprint.of(A100), one.key, one.picks[0], 1.0, 0.0, 2.0, 1, 0, "2026-01-31")
    modelled = Row(Fingerprint.of(A100), one.key, one.default(), 1e-6, 0.0, 2.0, 1, 0, "2026-01-31", modelled=True)
    database.add(measured)
    assert database.merge([modelled]).left == 1
    assert database.rows() == [measured]


def test_a_device_that_is_not_here_needs_a_model() -> None:
    with pytest.raises(DeviceNotFound):
        tune([], find_device("mi300x"))


def test_a_region_is_cut_down_to_a_few_tiles() -> None:
    text = cut_down(tasks()["gemm 16"].args["program"], "gemm", {"columns": 32})
    assert "bf16[96, 512]" in text
    assert "576" not in text
    assert irx.parse(text).graphs


def test_shipped_schedules_of_gpus_are_modelled_and_of_devices_there_are() -> None:
    known = {Fingerprint.of(device) for device in devices().values()}
    names = {path.stem for path in LIBRARY.glob("*.json") if not path.stem.startswith("cpu-")}
    assert names == {name for name, device in devices().items() if device.is_gpu}
    rows = [row for row in shipped() if row.device.kind != "cpu"]
    assert rows
    for row in rows:
        assert row.modelled
        assert row.device in known
        assert row.key.template in VALUES
        assert row.schedule.keys() == VALUES[row.key.template].keys()
