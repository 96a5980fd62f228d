"""SmolLM2-135M from its GGUF file: the same tokens as transformers, and the same perplexity."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import irx
from tests.end_to_end import smollm2

pytest.importorskip("gguf", reason="the hf extra is not installed")
pytest.importorskip("transformers", reason="the hf extra is not installed")


@pytest.fixture(scope="module")
def compiled() -> Any:
    return irx.compile(str(smollm2.path()), target="torch")


@pytest.fixture(scope="module")
def reference() -> Any:
    return smollm2.reference()


@pytest.mark.parametrize("prompt", smollm2.PROMPTS)
def test_greedy_tokens_are_those_of_transformers(prompt: str, compiled: Any, reference: Any) -> None:
    """All are what the reference finds likeliest behind those before them, which one forward tells."""
    ids = torch.tensor([compiled.tokenizer.encode(prompt).ids])
    made = compiled.generate(ids, max_new_tokens=64)
    assert made.shape == (1, ids.shape[1] + 64)
    assert torch.equal(made[:, : ids.shape[1]], ids)
    with torch.no_grad():
        likeliest = reference(made[:, :-1]).logits.argmax(-1)
    assert torch.equal(made[:, ids.shape[1] :], likeliest[:, ids.shape[1] - 1 :])


def test_perplexity_on_held_out_text_is_that_of_the_reference(compiled: Any, reference: Any) -> None:
    text = _text()
    ids = compiled.tokenizer.encode(text).ids[:1025]
    ours = _perplexity(lambda x: compiled(x).logits, ids)
    theirs = _perplexity(lambda x: reference(x).logits, ids)
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert 5 < theirs < 40, "the reference itself is broken"


def test_packed_weights_are_those_of_the_file(compiled: Any) -> None:
    assert ": q4_1[576, 576]" in compiled.program, "the projections must stay packed"
    assert ": q8_0[49152, 576]" in compiled.program, "the embedding must stay packed"


def _text() -> str:
    import pydoc_data.topics

    return "\n".join(pydoc_data.topics.topics.values())


@torch.no_grad()
def _perplexity(logits: Any, ids: list[int], window: int = 1024) -> float:
    total, count = 0.0, 0
    for start in range(0, len(ids) - 1, window):
        chunk = torch.tensor([ids[start : start + window + 1]])
        output = logits(chunk[:, :-1])[0]
        total += float(torch.nn.functional.cross_entropy(output, chunk[0, 1:], reduction="sum"))
        count += chunk.shape[1] - 1
    return math.exp(total / count)
