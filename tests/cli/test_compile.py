import json
from pathlib import Path

import pytest

import irx
from irx.cli import main
from tests.cli.programs import NORM


def test_the_ledger_and_the_artifact(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "tiny.irx"
    words = ["--target", "torch", "--max-length", "32", "--max-batch", "3", "-o", str(place)]
    assert main(["compile", str(model_folder), *words]) == 0
    printed = capsys.readouterr().out
    assert "raise-norm" in printed
    assert printed.endswith(f"Saved in {place}.\n")
    fast = irx.load(place)
    with pytest.raises(irx.IRXError, match="max_length is 32"):
        fast.generate([[1]], max_new_tokens=32)
    with pytest.raises(irx.IRXError, match="max_batch is 3"):
        fast.session(batch=4)


def test_the_ledger_as_json(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", str(model_folder), "--target", "torch", "--json", "-p", "cse | raise-norm"]) == 0
    ledger = json.loads(capsys.readouterr().out)
    assert ledger["summary"]["pipeline"] == "cse | raise-norm"
    assert {row["name"] for row in ledger["rows"]} == {"cse", "raise-norm"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-p", "cse | raise-nrom"], "did you mean 'raise-norm'?"),
        (["--target", "tourch"], "did you mean 'torch'?"),
        (["--target", "torch:a100"], "torch sees no GPU, but a100-80gb is one"),
    ],
)
def test_what_a_user_gets_wrong(
    words: list[str], said: str, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", str(model_folder), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_said_before_compiling(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("something else")
    assert main(["compile", "missing.gguf", "-o", str(tmp_path / "taken")]) == 2
    assert "exists and is no artifact" in capsys.readouterr().err
    assert main(["compile", "missing.gguf", "-o", str(tmp_path / "no" / "folder")]) == 2
    assert "make it, or name another one" in capsys.readouterr().err
    assert main(["compile", "missing.gguf", "-o", str(tmp_path / "free")]) == 2
    assert "there is no file missing.gguf" in capsys.readouterr().err


def test_a_text_whose_weights_have_no_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.irx"
    path.write_text(NORM)
    assert main(["compile", str(path), "--target", "torch"]) == 2
    assert "weight $w has no array" in capsys.readouterr().err


def test_a_plan_is_what_was_kept_and_goes_to_another_target(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20)
    words = ["compile", str(model_folder), "--data", str(tmp_path / "texts.txt"), "--target", "torch", "--json"]
    passes = "none | cse | quantize-weights{bits=8, skip=none}"
    assert main([*words, "-p", passes]) == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert summary["plan"] == summary["pipeline"]
    assert main([*words, "-p", passes, "--budget", "kl=1e-9"]) == 0
    (tmp_path / "plan.json").write_text(capsys.readouterr().out)
    assert main([*words, "--plan", str(tmp_path / "plan.json")]) == 0
    ledger = json.loads(capsys.readouterr().out)
    assert "cse" in {row["name"] for row in ledger["rows"]}
    assert not [row for row in ledger["rows"] if row["effect"] == "lossy"]
    assert main([*words, "--plan", str(tmp_path / "texts.txt")]) == 2
    assert "holds no plan" in capsys.readouterr().err
