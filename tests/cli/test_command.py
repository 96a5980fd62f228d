import json
import subprocess
import sys
from pathlib import Path

import pytest

import irx
from irx.cli import commands, main, summary
from irx.errors import UnknownTarget
from tests.cli.programs import NORM
from tests.repository.tree import ROOT


def test_help_lists_every_command_with_its_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name, path in commands().items():
        (line,) = [line for line in printed.splitlines() if line.startswith(f"  {name} ")]
        assert line.endswith(summary(path))
        assert summary(path), f"the docstring of {path.name} lacks a first line"


def test_no_words_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "commands:" in capsys.readouterr().out


@pytest.mark.parametrize("name", commands())
def test_every_command_has_help_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "examples:" in printed
    assert printed.count(f"  irx {name}") >= 1


def test_the_readme_lists_every_command() -> None:
    readme = (ROOT / "README.md").read_text()
    listed = [line for line in readme.splitlines() if line.startswith("| `irx ")]
    assert listed == [f"| `irx {name}` | {summary(path)} |" for name, path in commands().items()]


def test_a_file_that_cannot_be_written_is_the_users_to_mend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, taken = tmp_path / "model.irx", tmp_path / "taken"
    program.write_text(NORM)
    taken.write_text("")
    words = ["opt", str(program), "-p", "cse", "--dump", str(taken / "steps")]
    assert main(words) == 2
    assert str(taken) in capsys.readouterr().err
    monkeypatch.setenv("IRX_DEBUG", "1")
    with pytest.raises(NotADirectoryError):
        main(words)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"irx {irx.__version__}\n"


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["devics"], "devices"),
        (["devices", "a1000"], "a100"),
        (["passes", "--stage", "normalise"], "normalize"),
        (["ops", "rmsnorm"], "rms_norm"),
        (["ops", "--family", "linea"], "linear"),
    ],
)
def test_a_user_error_is_one_message(words: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("irx: unknown ")
    assert f"did you mean '{meant}'?" in printed.err
    assert printed.err.count("\n") == 1


def test_debugging_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRX_DEBUG", "1")
    with pytest.raises(UnknownTarget):
        main(["devices", "a1000"])
    monkeypatch.setenv("IRX_DEBUG", "0")
    assert main(["devices", "a1000"]) == 2


def test_a_reader_that_stops_early_is_no_error() -> None:
    program = "import sys; from irx.cli import main; sys.exit(main(['devices', '--json']))"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() in (0, 141)


def test_devices_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["name"] == "cpu"
    assert rows[0]["this_machine"]
    (a100,) = [row for row in rows if row["name"] == "a100-80gb"]
    assert a100["peak_tflops"]["bf16"] == 312
    assert a100["sources"]


def test_devices_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "h100", "triton:l4"]) == 0
    printed = capsys.readouterr().out
    assert "h100-sxm" in printed
    assert "NVIDIA L4" in printed
    assert "a100" not in printed


def test_ops_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ops", "add", "irx.rms_norm", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows.keys() == {"add", "rms_norm"}
    assert rows["add"] == {
        "name": "add",
        "family": "elementwise",
        "operands": ["x", "y"],
        "attributes": [],
        "doc": rows["add"]["doc"],
    }
    assert "eps" in rows["rms_norm"]["attributes"][0]


def test_ops_of_a_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ops", "--family", "norm", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["family"] for row in rows} == {"norm"}
    assert "rms_norm" in {row["name"] for row in rows}


def test_every_op_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    from irx.ir.opdef import registry

    assert main(["ops", "--json"]) == 0
    assert {row["name"] for row in json.loads(capsys.readouterr().out)} == set(registry())
