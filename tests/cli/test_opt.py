import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from irx.cli import main
from irx.ir.equal import difference
from irx.ir.parser import parse
from irx.ir.program import Program
from irx.passes import passes
from irx.pipeline.base import Context, Effect, Pass, Report, Stage
from irx.pipeline.index import Place
from irx.rewrite.report import Site
from tests.cli.programs import LANGUAGE_MODEL, NORM, WITH_CALL

RAISED = """\
weight $w : f32[8]
weight $p : f32[16, 8]
graph @forward(%x: f32[B, S, 8]) -> (y: f32[B, S, 16]) {
  %n = irx.rms_norm(%x, $w) {eps=1e-05}
  %y = irx.linear(%n, $p)
  return %y
}
"""


@dataclass(frozen=True)
class Double(Pass):
    """Doubles the first result of every graph, which no pass may do."""

    name = "double"
    stage = Stage.NORMALIZE
    effect = Effect.EXACT

    def run(self, program: Program, ctx: Context) -> Report:
        report = Report()
        for graph in program.graphs.values():
            node = graph.add("mul", [graph.outputs[0], 2.0])
            graph.outputs[0] = node.output
            report.sites.append(Site(graph.name, node.loc, "doubled"))
        return report


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.irx"
    path.write_text(NORM)
    return path


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(passes().places, "double", Place(__name__, "Double"))  # type: ignore[arg-type]


def optimized(capsys: pytest.CaptureFixture[str], *words: str) -> Program:
    assert main(["opt", *words]) == 0
    return parse(capsys.readouterr().out)


def test_what_is_printed_parses_back(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert difference(optimized(capsys, str(file), "-p", "raise-norm"), parse(RAISED)) is None
    assert difference(optimized(capsys, str(file), "-p", ""), parse(NORM)) is None


def test_the_default_preset_inserts_a_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.irx"
    path.write_text(LANGUAGE_MODEL)
    assert set(optimized(capsys, str(path)).graphs) == {"forward", "prefill", "decode", "decode_top"}


def test_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(NORM))
    assert difference(optimized(capsys, "-", "-p", "raise-norm"), parse(RAISED)) is None


def test_the_output_file_and_the_ledger(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = file.with_name("out.irx")
    assert main(["opt", str(file), "-p", "cse | raise-norm", "-o", str(out)]) == 0
    printed = capsys.readouterr()
    assert difference(parse(out.read_text()), parse(RAISED)) is None
    (line,) = [line for line in printed.out.splitlines() if line.strip().startswith("raise-norm")]
    assert "kept" in line
    assert printed.err == ""


def test_the_ledger_as_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["opt", str(file), "-p", "raise-norm", "--json"]) == 0
    ledger = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["decision"], row["matches"]) for row in ledger["rows"]] == [("raise-norm", "kept", 1)]
    assert ledger["summary"]["error"] is None


def test_verify_compares_the_whole_program(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["opt", str(file), "-p", "raise-norm", "--json", "--verify"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["summary"]["error"] < 1e-12


@pytest.mark.usefixtures("double")
def test_verify_refuses_a_pass_that_changes_the_function(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["opt", str(file), "-p", "double | raise-norm"]) == 0, "nothing evaluates without --verify"
    capsys.readouterr()
    assert main(["opt", str(file), "-p", "double | raise-norm", "--verify"]) == 1
    printed = capsys.readouterr()
    assert "irx: pass 'double' was refused: the whole program differs behind it" in printed.err
    assert difference(parse(printed.out), parse(RAISED)) is None


def test_dump_writes_the_program_around_every_pass(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = file.with_name("steps")
    assert main(["opt", str(file), "-p", "cse | raise-norm", "--dump", str(folder)]) == 0
    capsys.readouterr()
    names = ["00-cse.before.irx", "00-cse.after.irx", "01-raise-norm.before.irx", "01-raise-norm.after.irx"]
    assert {path.name for path in folder.iterdir()} == set(names)
    assert difference(parse((folder / names[-1]).read_text()), parse(RAISED)) is None


def test_a_program_that_calls_torch_is_optimized_and_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.irx"
    path.write_text(WITH_CALL)
    assert main(["opt", str(path), "-p", "cse", "--verify", "--json"]) == 0
    ledger = json.loads(capsys.readouterr().out)
    assert ledger["summary"]["error"] is None
    assert "was not compared" in ledger["notes"][0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-p", "raise-nrom"], "unknown pass 'raise-nrom'; did you mean 'raise-norm'?"),
        (["-p", "defualt"], "unknown preset 'defualt'; did you mean 'default'?"),
        (["-p", "fold-constants{generate=true}"], "did you mean 'generated'?"),
        (["-p", "fold-constants{generated=3}"], "must be bool, not 3"),
        (["-p", "cse | | cse"], "<pipeline>:1:7: expected the name of a pass"),
        (["-o", "no/such/folder/out.irx"], "no/such/folder/out.irx cannot be written"),
        (["--target", "a1000"], "unknown target 'a1000'; did you mean 'a100'?"),
    ],
)
def test_what_a_user_gets_wrong(words: list[str], said: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["opt", str(file), *words]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""


def test_files_that_are_no_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken, binary = tmp_path / "broken.irx", tmp_path / "model.gguf"
    broken.write_text("graph @forward(%x: f32[B]) -> (y: f32[B]) {\n  %y = irx.ad(%x, 1.0)\n  return %y\n}\n")
    binary.write_bytes(b"GGUF\xff\xfe\x00\x80")
    assert main(["opt", str(broken)]) == 2
    assert f"{broken}:2:" in capsys.readouterr().err
    assert main(["opt", str(binary)]) == 2
    assert "is no text" in capsys.readouterr().err
    assert main(["opt", str(tmp_path / "missing.irx")]) == 2
    assert "there is no program at" in capsys.readouterr().err


def test_it_needs_no_framework(file: Path) -> None:
    program = f"""
import sys
from irx.cli import main
status = main(["opt", {str(file)!r}, "--verify"])
heavy = sorted({{"torch", "transformers", "tvm", "triton", "networkx"}} & set(sys.modules))
sys.exit(f"imported {{heavy}}" if heavy else status)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "irx.rms_norm" in done.stdout
