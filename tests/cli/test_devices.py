"""What `irx devices` says of this machine before and after it was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from irx.cli import main
from irx.target import host_cpu, measure_host


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRX_CACHE_DIR", str(tmp_path))


def facts(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    capsys.readouterr()
    assert main(["devices", "cpu", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["this_machine"]
    return row


def test_measured_figures_replace_nominal_ones(capsys: pytest.CaptureFixture[str]) -> None:
    nominal = facts(capsys)
    assert not nominal["measured"]
    assert nominal["bandwidth_gb_s"] == host_cpu().bandwidth_gb_s
    measure_host(lambda size: 12.5e9, {"f32": lambda: 7e11})
    row = facts(capsys)
    assert row["measured"]
    assert row["bandwidth_gb_s"] == 12.5
    assert row["peak_tflops"]["f32"] == pytest.approx(0.7)
    assert main(["devices", "cpu"]) == 0
    assert "measured" in capsys.readouterr().out  # whatever the width of the terminal


def test_measuring_is_asked_for(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "irx.backends.tvm.probe.measure",
        lambda again: measure_host(lambda size: 3e9, {"f32": lambda: 1e11}, again=again),
    )
    assert main(["devices", "cpu", "--measure"]) == 0
    assert facts(capsys)["bandwidth_gb_s"] == 3
