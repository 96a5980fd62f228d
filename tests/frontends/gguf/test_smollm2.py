"""The real model: every weight of SmolLM2 as an independent reader gives it, and the text it writes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gguf", reason="the reference reads the file with the gguf package")
pytest.importorskip("transformers", reason="the hf extra is not installed")

from irx.frontends.gguf.model import GgufModel, load
from irx.frontends.gguf.tokenizer import build_tokenizer
from tests.end_to_end import smollm2

LONG_TEXT = json.loads((Path(__file__).parent / "goldens" / "smollm2.json").read_text())["examples"][-1]
# Of the long text's first 2049 tokens in windows of 1024, by a forward written without transformers or this reader.
PERPLEXITY = 15.6627


@pytest.fixture(scope="module")
def loaded() -> GgufModel:
    return load(smollm2.path())


@pytest.fixture(scope="module")
def running(loaded: GgufModel) -> Any:
    """A second model with its weights as float32 tensors."""
    module = load(loaded.file.path).module
    values = {name: torch.from_numpy(weight.values()) for name, weight in loaded.weights.items()}
    module.load_state_dict(values, assign=True)
    return module


def test_every_weight_is_that_of_the_reference(running: Any) -> None:
    expected = smollm2.reference().state_dict()
    actual = running.state_dict()
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


def test_configuration_is_that_of_the_reference(running: Any) -> None:
    ours, theirs = running.config.to_dict(), smollm2.reference().config.to_dict()
    tokens = {"bos_token_id", "eos_token_id", "pad_token_id"}  # the reference states none
    differing = {key for key in theirs if ours[key] != theirs[key]} - tokens
    assert differing <= {"rms_norm_eps", "dtype"}
    assert ours["rms_norm_eps"] == pytest.approx(theirs["rms_norm_eps"], rel=1e-6)


def test_matrices_stay_packed(loaded: GgufModel) -> None:
    dtypes = [weight.dtype for name, weight in loaded.weights.items() if name != "lm_head.weight"]
    assert {dtype: dtypes.count(dtype) for dtype in set(dtypes)} == {"q4_1": 210, "q8_0": 1, "f32": 61}
    stored = sum(weight.tensor.nbytes for weight in set(loaded.weights.values()))
    assert stored == sum(tensor.nbytes for tensor in loaded.file.tensors.values()) < 100e6


def test_greedy_text(loaded: GgufModel, running: Any) -> None:
    tokenizer = build_tokenizer(loaded.file).tokenizer
    for prompt, expected in [("The capital of France is", " Paris."), ("Water boils at 100 degrees", " Celsius")]:
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        new = running.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
        assert tokenizer.decode(new.tolist()).startswith(expected)


@torch.no_grad()
def test_perplexity(running: Any) -> None:
    ids = torch.tensor([LONG_TEXT["ids"][:2049]])
    total = 0.0
    for start in (0, 1024):
        window = ids[:, start : start + 1025]
        logits = running(window[:, :-1], use_cache=False).logits[0]
        total += torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum").item()
    assert math.exp(total / 2048) == pytest.approx(PERPLEXITY, rel=1e-4)
