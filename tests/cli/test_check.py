import json
from pathlib import Path

import pytest

from irx.cli import main
from tests.cli.programs import LANGUAGE_MODEL, NORM, WITH_CALL
from tests.frontends.gguf.writing import write

# A norm whose mean runs over the wrong axis, which recognition almost takes for one.
NEARLY = NORM.replace("axes=[2]", "axes=[1]")


def found(capsys: pytest.CaptureFixture[str], path: object, status: int = 0) -> dict[str, object]:
    assert main(["check", str(path), "--json"]) == status
    return dict(json.loads(capsys.readouterr().out))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.irx"


def test_calls_of_torch_with_their_place(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(WITH_CALL)
    assert found(capsys, file)["torch_calls"] == [
        {"target": "aten.erf.default", "graph": "forward", "module": "model.odd", "line": "net.py:7"}
    ]
    assert main(["check", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "Left to torch: 1." in printed
    assert "model.odd (net.py:7)" in printed


def test_near_misses_with_the_first_condition_that_failed(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # else a narrow terminal breaks the reason over lines
    file.write_text(NEARLY)
    misses = found(capsys, file)["near_misses"]
    (reason,) = {miss["reason"] for miss in misses if miss["pass"] == "raise-norm"}  # type: ignore[attr-defined]
    assert reason.startswith("rms_norm: ")
    assert main(["check", str(file)]) == 0
    assert reason in capsys.readouterr().out


def test_which_attention_sites_get_a_cache(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(LANGUAGE_MODEL)
    facts = found(capsys, file)
    assert facts["attention"] == [{"module": "model.layers.0.attention", "line": "", "cache": "kv0"}]
    assert facts["no_cache"] == ""
    assert main(["check", str(file)]) == 0
    assert "Attention: 1 sites, 1 with a cache." in capsys.readouterr().out


def test_why_there_is_no_cache(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(LANGUAGE_MODEL.replace("causal=true", "causal=false"))
    facts = found(capsys, file)
    assert facts["attention"] == [{"module": "model.layers.0.attention", "line": "", "cache": None}]
    assert facts["no_cache"]
    assert main(["check", str(file)]) == 0
    assert f"no cache: {facts['no_cache']}" in capsys.readouterr().out


def test_a_model_folder(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = found(capsys, model_folder)
    assert facts["torch_calls"] == []
    assert [site["cache"] for site in facts["attention"]] == ["kv0", "kv1"]  # type: ignore[attr-defined]
    assert facts["refused"] == []


def test_a_model_that_cannot_be_captured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "model.gguf", "llamma", {}, {})
    facts = found(capsys, path, status=1)
    assert facts["captured"] is False
    assert facts["error"]["kind"] == "UnknownArchitecture"  # type: ignore[index]
    assert main(["check", str(path)]) == 1
    printed = capsys.readouterr().out
    assert "cannot be captured" in printed
    assert "did you mean 'llama'?" in printed


@pytest.mark.parametrize("name", ["missing.gguf", "."])
def test_what_is_no_model_is_a_users_error(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / name)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
