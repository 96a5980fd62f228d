"""The GPU bench on the CPU: its rival computes what the model computes, and its rows survive what goes wrong."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

import irx
from irx.analysis.random_weights import bind_declared
from irx.bench.gpu import ours
from irx.bench.gpu import rows as rows_module
from irx.bench.gpu import run as run_module
from irx.bench.gpu.isolated import Plan, restored, results
from irx.bench.gpu.rival import Model, Shape, decode_step, prefill_step
from irx.bench.gpu.rows import Bench, Case, compare, measured, planned
from irx.bench.gpu.run import about, run, table
from irx.bench.programs import shape
from irx.bench.result import Result
from irx.cli import main
from irx.errors import NoGpu
from irx.ir.program import Program
from irx.target import find_device


@cache
def small() -> tuple[Program, torch.nn.Module]:
    """A module of two layers, and its program."""
    transformers = pytest.importorskip("transformers")
    from irx.frontends.sources import read

    sizes = {"hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 50}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "rms_norm_eps": 1e-5}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**sizes, **heads, tie_word_embeddings=True)
    module = transformers.LlamaForCausalLM(config).eval()
    return read(module, max_length=64).program, module


def test_the_rival_computes_what_the_model_computes() -> None:
    program, module = small()
    rival = Model(program, 16, "cpu")
    ids = torch.tensor([[3, 14, 15, 9, 2, 6]])
    with torch.no_grad():
        wanted = module(torch.cat((ids, ids[:, -1:]), 1)).logits
        assert torch.allclose(prefill_step(rival, ids)(), wanted[:, 5], atol=1e-5)
        step = decode_step(rival, rival, ids)
        assert torch.allclose(step(), wanted[:, 6], atol=1e-5)
        assert torch.equal(step(), step())


def test_sizes_are_read_off_the_weights() -> None:
    assert Shape.of(shape("llama-1b")) == Shape(layers=16, width=2048, heads=32, groups=8)
    assert Shape.of(shape("smollm2-135m")) == Shape(layers=30, width=576, heads=9, groups=3)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench of a small model on the CPU, where nothing is compiled by Inductor."""
    program, _ = small()
    made = Bench(find_device("h200"), 2, 0.001, 0.0, lambda line: None, place="cpu")
    monkeypatch.setattr(rows_module, "CALLS", 1)
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    made.keep(("program", "small"), lambda: program)
    made.keep(("ours", "small", "default"), lambda: irx.compile(program, target="torch:cpu"))
    program.meta["vocab"] = 50
    return made


def test_a_row_compares_results_and_times(bench: Bench) -> None:
    for prefill in (False, True):
        case = Case("small", "small", "default", 1e-9, 8, prefill)
        found = compare(case, bench, Result("gpu", case.what, case.pipeline, case.wanted, "x"))
        assert (found.verdict, found.rival) == ("holds", "Inductor")
        assert found.error is not None and found.error < 1e-4
        assert found.floor is not None and 0 < found.floor < 1e-3


def test_another_result_is_wrong(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(bench.program("small"), 16, "cpu")
    model.embedding = model.embedding.flip(0)
    bench.keep(("theirs", "small", 16, False), lambda: model)
    case = Case("small", "small", "default", 1.0, 8)
    assert compare(case, bench, Result("gpu", "small", "default", 1.0, "x")).verdict == "wrong"


def test_a_row_that_fails_says_why(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(name: str, pipeline: str = "default") -> None:
        raise RuntimeError(f"no {name}")

    monkeypatch.setattr(bench, "ours", failing)
    found = [measured(bench, number) for number in range(len(planned()))]
    assert {result.verdict for result in found} == {"absent"}
    assert found[0].note == "RuntimeError: no smollm2-135m"


FAKE = """
import json, os, sys, time
for number in sys.argv[2:]:
    if number == "{dies}":
        os._exit(9)
    if number == "{hangs}":
        time.sleep(60)
    row = {{"family": "gpu", "what": number, "pipeline": "", "wanted": 1.0, "unit": "x", "verdict": "holds"}}
    row |= {{"figure": {{"median": 1.0, "low": 1.0, "high": 1.0}}, "ours": None, "theirs": None}}
    print(json.dumps(row), flush=True)
    if number == "{breaks}":
        sys.exit(75)
"""


@pytest.mark.parametrize(
    ("dies", "hangs", "breaks", "lost"),
    [("1", "", "", {1: "its process ended with 9"}), ("", "2", "", {2: "it took more than 5 s"}), ("", "", "1", {})],
)
def test_a_process_that_ends_or_hangs_costs_one_row(
    dies: str, hangs: str, breaks: str, lost: dict[int, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fake_rows.py").write_text(FAKE.format(dies=dies, hangs=hangs, breaks=breaks))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    plan = Plan("h200", 1, 0.1, 0.0)
    found = list(results(plan, "1B", lambda line: None, limit=5.0 if hangs else 60.0, module="fake_rows"))
    chosen = [number for number, (row, _) in enumerate(planned()) if "1B" in row.what]
    assert [row.note for row in found] == [lost.get(number, "") for number in chosen]
    assert {row.what for row in found if row.verdict == "holds"} == {str(n) for n in chosen if n not in lost}


SMALL = """
program @small {
  weight $w : bf16[32]
  graph @forward(%x: bf16[2, 32]) -> (y: bf16[2, 32]) {
    %y = irx.mul(%x, $w) : bf16[2, 32]
    return %y
  }
}
"""


def test_ours_is_what_compile_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search takes what was not measured on the device, for so many seconds."""
    pytest.importorskip("triton")
    asked: list[float] = []
    monkeypatch.setattr(ours, "tune", lambda tasks, device, seconds: asked.append(seconds))
    program = irx.parse(SMALL)
    bind_declared(program)
    made = ours.made_for(program, find_device("h200"), "default", 5.0)
    assert asked == [5.0]
    assert made.program == irx.compile(program, target="h200").program


def test_rows_come_back_as_they_were(bench: Bench) -> None:
    found = compare(Case("small", "small", "default", 1e-9, 8), bench, Result("gpu", "small", "default", 1.0, "x"))
    assert restored(found.facts()) == found


WAITING = """
import time
def test_ends(): pass
def test_waits(): time.sleep(60)
"""


def test_tests_that_hang_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tests" / "gpu").mkdir(parents=True)
    (tmp_path / "tests/gpu/test_it.py").write_text(
        "import time\ndef test_ends(): pass\ndef test_waits(): time.sleep(60)"
    )
    monkeypatch.chdir(tmp_path)
    found = run_module.gpu_tests(lambda line: None, limit=3.0)
    assert found.verdict == "wrong" and found.note.startswith(
        "not over after 3 s, at: tests/gpu/test_it.py::test_waits"
    )


def test_the_table_names_device_versions_and_day() -> None:
    facts = about(find_device("h200"))
    assert {"device", "torch", "day"} <= facts.keys()
    text = table([Result("gpu", "a row", "default", 2.0, "x").without("absent", "why")], facts)
    assert facts["torch"] in text
    assert text.splitlines()[-1].startswith("| a row | default | 2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_command_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(NoGpu):
        next(iter(run(find_device("h200"))))
    assert main(["bench", "--target", "h200", "--quick"]) == 2
    assert "torch sees none" in capsys.readouterr().err
