import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import irx
from irx.analysis.random_weights import bind_random_weights
from irx.cli import main
from irx.ir.parser import parse
from irx.ledger import DROPPED, KEPT, Ledger, Row, Summary
from tests.cli.programs import NORM

RENAMED = NORM.replace("%square", "%other").replace("net.py:12", "net.py:99")
CHANGED = NORM.replace("1e-05", "1e-06")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    texts = {"first": NORM, "renamed": RENAMED, "changed": CHANGED}
    for name, text in texts.items():
        (tmp_path / f"{name}.irx").write_text(text)
    return {name: str(tmp_path / f"{name}.irx") for name in texts}


def artifact(folder: Path, pipeline: str) -> str:
    program = parse(NORM)
    bind_random_weights(program.weights)
    irx.compile(program, target="torch", pipeline=pipeline).save(folder)
    return str(folder)


def test_names_and_places_do_not_count(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", files["first"], files["renamed"]]) == 0
    assert capsys.readouterr().out == "The programs are equal.\n"


def test_the_first_difference_is_shown(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", files["first"], files["changed"]]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("@forward: operands differ")
    assert "1e-05" in printed
    assert "1e-06" in printed


def test_as_json(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", files["first"], files["changed"], "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["equal"] is False
    assert "1e-06" in found["program"]
    assert main(["diff", files["first"], files["renamed"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"equal": True, "program": None, "ledger": []}


def test_artifacts_and_their_ledgers(tmp_path: Path, files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    raised, plain = artifact(tmp_path / "raised", "cse | raise-norm"), artifact(tmp_path / "plain", "cse")
    assert main(["diff", plain, plain]) == 0
    assert main(["diff", plain, files["first"]]) == 0, "an artifact beside the text that it was made of"
    capsys.readouterr()
    assert main(["diff", plain, raised]) == 1
    printed = capsys.readouterr().out
    assert "operations differ" in printed
    assert "irx.rms_norm" in printed
    assert printed.endswith("ledger: raise-norm: absent -> kept, 1 site\n")


def ledger(path: Path, *rows: Row, **quality: float) -> str:
    path.write_text(Ledger(list(rows), summary=Summary(quality=quality)).to_json())
    return str(path)


def test_ledgers_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Costs and decisions count, gains where they differ by more than their noise."""
    fuse = Row(0, "fuse", "fuse", "rounding", KEPT, matches=3, latency=-1e-5, noise=1e-6)
    cast = Row(1, "cast", "weights", "lossy", KEPT, matches=2, metric="kl", spent=0.01, left=0.04)
    first = ledger(tmp_path / "first.json", fuse, cast, kl=0.01)
    noise = ledger(tmp_path / "noise.json", replace(fuse, latency=-1.1e-5, seconds=3.0), cast, kl=0.01)
    faster = ledger(tmp_path / "faster.json", replace(fuse, latency=-2e-5), cast, kl=0.01)
    dropped = ledger(tmp_path / "dropped.json", fuse, replace(cast, decision=DROPPED, spent=0.08))
    assert main(["diff", first, noise]) == 0
    assert capsys.readouterr().out == "The ledgers are equal.\n"
    assert main(["diff", first, faster]) == 1
    assert capsys.readouterr().out == "ledger: fuse: kept, 3 sites, -10.0 us -> kept, 3 sites, -20.0 us\n"
    assert main(["diff", first, dropped, "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "equal": False,
        "program": None,
        "ledger": ["cast: kept, 2 sites, 0.01 kl -> dropped, 2 sites, 0.08 kl", "quality kl: 0.01 -> not measured"],
    }


def test_standard_input(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(RENAMED))
    assert main(["diff", files["first"], "-"]) == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO(CHANGED))
    assert main(["diff", files["first"], "-"]) == 1
    assert "1e-06" in capsys.readouterr().out


def test_a_missing_side(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", files["first"], "nowhere.irx"]) == 2
    assert "there is no program at nowhere.irx" in capsys.readouterr().err
