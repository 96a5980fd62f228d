"""Token passes on trained models: embeddings of merged tokens stay near, and nearer the fewer are merged."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import irx
from tests.end_to_end.test_minilm import embeddings, folder
from tests.end_to_end.test_minilm import model as model

TEXT = (
    "The old lighthouse keeper climbed the stairs every evening before dusk to light the lamp, as his father and his "
    "grandfather had done. Ships that passed the cape in the storms of winter steered by it, and in seventy years not "
    "one had been lost upon the rocks. When the harbour office wrote that a machine would do the work from spring on, "
    "he read the letter twice, folded it, and went up to light the lamp as if nothing had been said. "
)
LENGTH = 128


@pytest.fixture(scope="module")
def tokens() -> dict[str, torch.Tensor]:
    """Four windows of 128 tokens without padding, as merging padding costs nothing."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = tokenizer.encode(TEXT * 3, add_special_tokens=False).ids
    rows = [[101, *ids[start : start + LENGTH - 2], 102] for start in (0, 17, 40, 61)]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.ones(4, LENGTH, dtype=torch.long)}


def test_embeddings_stay_near_where_tokens_merge(model: Any, tokens: dict[str, torch.Tensor]) -> None:
    mask = tokens["attention_mask"]
    expected = embeddings(model(**tokens).last_hidden_state, mask)
    cosines = []
    for count in (4, 8, 12):
        fast = irx.compile(model, target="torch", pipeline=f"none | merge-tokens{{per_layer={count}}}")
        states = fast(**tokens).last_hidden_state
        assert states.shape == (4, LENGTH, 384)
        cosines.append((embeddings(states, mask) * expected).sum(1).mean().item())
    assert cosines == sorted(cosines, reverse=True)
    assert cosines[0] > 0.99
    assert cosines[2] < 0.99999, "something must have been merged"
