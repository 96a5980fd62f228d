import io
import json
import sys
from pathlib import Path

import pytest
import torch

import irx
from irx.cli import main
from irx.cli.generate import _Printer


@pytest.fixture(scope="module")
def artifact(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("saved") / "tiny.irx"
    assert main(["compile", str(model_folder), "--target", "torch", "-o", str(place)]) == 0
    return str(place)


def test_the_text_is_that_of_the_model(artifact: str, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(model_folder)
    tokenizer = irx.load(artifact).tokenizer
    assert tokenizer is not None
    prompt = tokenizer.encode("the moon").ids
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False)[0].tolist()
    assert main(["generate", artifact, "the moon", "--max-new-tokens", "6"]) == 0
    assert capsys.readouterr().out == tokenizer.decode(expected) + "\n"
    assert main(["generate", artifact, "the moon", "--max-new-tokens", "6", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "prompt": "the moon",
        "text": tokenizer.decode(expected),
        "ids": expected,
    }


def test_a_folder_is_compiled_first(artifact: str, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", artifact, "a bright sea", "--max-new-tokens", "4"]) == 0
    first = capsys.readouterr().out
    assert main(["generate", str(model_folder), "a bright sea", "--max-new-tokens", "4", "--target", "torch"]) == 0
    assert capsys.readouterr().out == first


def test_the_seed_decides_what_is_sampled(artifact: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for seed in ("1", "1", "2"):
        words = ["--temperature", "5", "--seed", seed, "--max-new-tokens", "20"]
        assert main(["generate", artifact, "so", *words]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_the_prompt_from_standard_input(
    artifact: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("the sun\n"))
    assert main(["generate", artifact, "-", "--max-new-tokens", "1"]) == 0
    assert capsys.readouterr().out.startswith("the sun ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["", "--max-new-tokens", "1"], "give every row at least one token"),
        (["so", "--max-new-tokens", "64"], "65 tokens are wanted, but max_length is 64"),
        (["so", "--max-new-tokens", "0"], "max_new_tokens=0 asks for nothing"),
        (["so", "--top-p", "2"], "top_p=2.0 is no probability"),
        (["so", "--top-k", "0"], "top_k=0 leaves no token"),
        (["so", "--temperature", "-1"], "temperature=-1.0 is negative"),
    ],
)
def test_what_a_user_gets_wrong(words: list[str], said: str, artifact: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", artifact, *words]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""


def test_a_model_without_a_tokenizer(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in model_folder.iterdir():
        if path.name != "tokenizer.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert main(["generate", str(tmp_path), "so", "--target", "torch"]) == 2
    assert f"{tmp_path} has no tokenizer" in capsys.readouterr().err


class Bytes:
    """A tokenizer of single bytes, in which most characters take several tokens."""

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


def test_a_character_of_several_tokens_is_printed_once_it_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    printer = _Printer(Bytes(), list(b"a "), quiet=False)
    printed = []
    for byte in "né".encode():
        printer(torch.tensor([byte]))
        printed.append(capsys.readouterr().out)
    assert printed == ["a n", "", "é"]
    printer(torch.tensor([0xC3]))
    printer.end()
    assert capsys.readouterr().out == "\N{REPLACEMENT CHARACTER}\n", "what never became whole is not lost"
