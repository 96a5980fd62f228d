"""`irx tune`: a model whose kernels are toys, and schedules that travel between two machines' caches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from irx.cli import main
from irx.target import host_cpu
from irx.tuning import Database, Fingerprint, Row, Schedule, TaskKey, read_document
from tests.tuning import toys

PROGRAM = """\
program @tiny {
  size B in [1, 8]
  graph @forward(%x: f32[B, 8]) -> (y: f32[B, 8]) {
    %y = irx.silu(%x) : f32[B, 8]
    return %y
  }
}
"""
TASK = toys.task(toys.space(1, 2, toys.WRONG), {1: 1.0, 2: 0.5, toys.WRONG: 0.1}, where="layer", uses=30)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return use(tmp_path / "cache", monkeypatch)


def use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IRX_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr("irx.backends.torch.backend.TorchBackend.spaces", lambda self, program, graph, device: (TASK,))
    path = tmp_path / "model.irx"
    path.write_text(PROGRAM)
    return str(path)


def row(template: str, seconds: float, tile: int, cores: int = 2) -> Row:
    device = replace(Fingerprint.of(host_cpu()), cores=cores)
    schedule = Schedule(tile=tile)
    return Row(device, TaskKey(template, "v1", "n=24", "f64"), schedule, seconds, 0.01, 2.0, 9, 0, "2026-01-31")


def test_a_model_is_tuned_and_the_result_kept(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # a narrow terminal shortens what the table says
    assert main(["tune", model, "--target", "torch:cpu"]) == 0
    printed = capsys.readouterr()
    assert "toy[n=24, f64]" in printed.out
    assert "2.00x" in printed.out
    assert "refused: toy[n=24, f64]: slow=False, tile=3: its result is off" in printed.err
    (kept,) = Database().rows()
    assert kept.schedule == toys.schedule(2)


def test_as_json(model: str, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", model, "--target", "torch:cpu", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["database"] == str(cache / "schedules")
    assert report["kernels"][0]["decision"] == "faster"
    assert report["kernels"][0]["best"]["schedule"] == {"slow": False, "tile": 2}


def test_without_choices_there_is_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.irx"
    path.write_text(PROGRAM)
    assert main(["tune", str(path), "--target", "torch:cpu", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["kernels"] == []
    assert "no kernel of this model has choices" in printed.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to tune was named"),
        (["--effort", "fast"], "unknown option 'fast'"),
        (["--minutes", "0"], "0 seconds to tune in"),
        (["--target", "torch:cpu-avx2"], "can only be measured on one"),
    ],
)
def test_user_errors(words: list[str], message: str, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    target = [] if "--target" in words else ["--target", "torch:cpu"]
    assert main(["tune", *([model, *target] if words else []), *words]) == 2
    assert message in capsys.readouterr().err


def test_schedules_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    for item in (row("a", 1.0, 1), row("b", 1.0, 1), row("a", 1.0, 1, cores=64)):
        Database().add(item)
    assert main(["tune", "--export", str(file)]) == 0
    assert "3 schedules of 2 devices written" in capsys.readouterr().err
    use(tmp_path / "other", monkeypatch)
    Database().add(row("a", 0.5, 2))
    Database().add(row("b", 2.0, 2))
    assert main(["tune", "--import", str(file)]) == 0
    assert "1 new, 1 faster than what was here, 1 not faster" in capsys.readouterr().out
    tiles = {(found.key.template, found.device.cores): found.schedule["tile"] for found in Database().rows()}
    assert tiles == {("a", 2): 2, ("b", 2): 1, ("a", 64): 1}
    assert main(["tune", "--import", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left"] == 3


def test_files_merge_into_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = []
    for name, rows in {"x": [row("a", 1.0, 1), row("b", 2.0, 1)], "y": [row("b", 1.0, 2), row("c", 1.0, 2)]}.items():
        use(tmp_path / name, monkeypatch)
        for item in rows:
            Database().add(item)
        names.append(str(tmp_path / f"{name}.json"))
        assert main(["tune", "--export", names[-1]]) == 0
    both = tmp_path / "both.json"
    assert main(["tune", "--merge", *names, "-o", str(both)]) == 0
    assert {found.key.template: found.schedule["tile"] for found in read_document(both)} == {"a": 1, "b": 2, "c": 2}
    capsys.readouterr()
    assert main(["tune", "--merge", *names]) == 0
    assert capsys.readouterr().out == both.read_text()


def test_a_file_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.json"
    assert main(["tune", "--import", str(path)]) == 2
    assert str(path) in capsys.readouterr().err
