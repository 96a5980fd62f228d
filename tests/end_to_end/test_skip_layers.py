"""skip-layers on trained models: what a layer costs, what goes with it, and that the cache and forward agree."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import irx
from tests.end_to_end import smollm2
from tests.end_to_end.family_table import relative
from tests.end_to_end.test_minilm import embeddings, model, tokens

pytest.importorskip("transformers", reason="the hf extra is not installed")

__all__ = ["model", "tokens"]  # fixtures of the other file
LENGTH, WINDOWS = 512, 2


def language_model(pipeline: str) -> irx.Executable:
    return irx.compile(str(smollm2.path()), target="torch", pipeline=pipeline)


@pytest.fixture(scope="module")
def whole() -> irx.Executable:
    return language_model("none")


@pytest.fixture(scope="module")
def ids(whole: Any) -> torch.Tensor:
    import pydoc_data.topics

    found = whole.tokenizer.encode("\n".join(pydoc_data.topics.topics.values())).ids[: WINDOWS * LENGTH]
    return torch.tensor(found).reshape(WINDOWS, LENGTH)


def perplexity(fast: Any, ids: torch.Tensor) -> float:
    total = 0.0
    for row in ids:
        logits = fast(row[None]).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, row[1:]))
    return math.exp(total / len(ids))


def test_a_middle_layer_costs_about_a_quarter_of_the_perplexity(whole: Any, ids: torch.Tensor) -> None:
    """On 2000 tokens of news leaving out layer 15 costs 24 %, measured in plain PyTorch."""
    fast = language_model("none | skip-layers{policy=list, layers=15}")
    ratio = perplexity(fast, ids) / perplexity(whole, ids)
    print(f"layer 15 left out: perplexity {ratio - 1:+.1%}")
    assert 1.20 < ratio < 1.30
    prompt = ids[:, :24]
    kept, full = fast.session(2), whole.session(2)
    made = [kept.append(part, logits_to_keep=0) for part in prompt.split([16, *[1] * 8], dim=1)]
    assert relative(torch.cat(made, 1), fast(prompt).logits) < 1e-4
    full.append(prompt)
    assert kept.memory() * 30 == full.memory() * 29
    assert "$model.layers.15." not in fast.program and "$model.layers.14." in fast.program


def test_an_encoder_without_a_layer_still_points_nearly_there(model: Any, tokens: dict[str, torch.Tensor]) -> None:
    """In plain PyTorch, without layer 3 the mean cosine to the whole model is 0.91."""
    fast = irx.compile(model, target="torch", pipeline="none | skip-layers{policy=list, layers=3}")
    ours = embeddings(fast(**tokens).last_hidden_state, tokens["attention_mask"])
    theirs = embeddings(model(**tokens).last_hidden_state, tokens["attention_mask"])
    cosine = float((ours * theirs).sum(-1).mean())
    print(f"layer 3 left out: mean cosine {cosine:.3f}")
    assert 0.85 < cosine < 0.96
