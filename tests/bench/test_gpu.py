"""The GPU bench on the CPU: its rival computes what the model computes, and its rows survive what goes wrong."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from irx.bench.gpu import rows as rows_module
from irx.bench.gpu.rival import Model, Shape, decode_step, prefill_step
from irx.bench.gpu.rows import CASES, Bench, Case, compare, rows
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
        step = decode_step(rival, ids)
        assert torch.allclose(step(), wanted[:, 6], atol=1e-5)
        assert torch.equal(step(), step())


def test_sizes_are_read_off_the_weights() -> None:
    assert Shape.of(shape("llama-1b")) == Shape(layers=16, width=2048, heads=32, groups=8)
    assert Shape.of(shape("smollm2-135m")) == Shape(layers=30, width=576, heads=9, groups=3)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench of a small model on the CPU, where nothing is compiled by Inductor."""
    import irx

    program, _ = small()
    made = Bench(find_device("h200"), 2, 0.001, "none", lambda line: None, place="cpu")
    monkeypatch.setattr(rows_module, "CALLS", 1)
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    made.keep(("program", "small"), lambda: program)
    made.keep(("ours", "small", "default"), lambda: irx.compile(program, target="torch:cpu"))
    program.meta["vocab"] = 50
    return made


def test_a_row_compares_results_and_times(bench: Bench) -> None:
    for prefill in (False, True):
        case = Case("small", "small", "default", 1e-9, 8, prefill)
        found = compare(bench, case, Result("gpu", case.what, case.pipeline, case.wanted, "x"))
        assert (found.verdict, found.rival) == ("holds", "Inductor")
        assert found.error is not None and found.error < 1e-4
        assert found.floor is not None and 0 < found.floor < 1e-3


def test_another_result_is_wrong(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(bench.program("small"), 16, "cpu")
    model.embedding = model.embedding.flip(0)
    bench.keep(("theirs", "small", 16, False), lambda: model)
    case = Case("small", "small", "default", 1.0, 8)
    assert compare(bench, case, Result("gpu", "small", "default", 1.0, "x")).verdict == "wrong"


def test_a_row_that_fails_leaves_the_others(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(name: str, pipeline: str = "default") -> None:
        raise RuntimeError(f"no {name}")

    monkeypatch.setattr(bench, "ours", failing)
    found = list(rows(bench))
    assert len(found) == len(CASES) + 2
    assert {result.verdict for result in found} == {"absent"}
    assert found[0].note == "RuntimeError: no smollm2-135m"


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
