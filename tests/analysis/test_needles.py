"""Needles are found by a model that looks them up, and only where it looks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from irx.analysis.needles import plant, recall
from irx.errors import BadData

TEXT = "the quick brown fox jumps over the lazy dog and runs away. "


class Letters:
    """A token for every letter."""

    def encode(self, text: str, add_special_tokens: bool = True) -> Any:
        return type("Encoding", (), {"ids": [ord(letter) for letter in text]})


def reader(window: int, wrong: int = 0) -> Any:
    """A model that copies what follows the question's words in the last `window` tokens; `wrong` spoils answers."""

    def answer(ids: Any, count: int) -> Any:
        texts = ["".join(map(chr, row)) for row in ids]
        rows = []
        for text in texts:
            question = text[text.rindex(" The secret") :]
            place = text[-window:].find(question)
            found = text[-window:][place + len(question) :][:count].ljust(count)
            rows.append([ord(letter) + wrong for letter in found])
        return np.array(rows)

    return answer


def test_all_needles_are_found_by_who_sees_everything() -> None:
    assert recall(reader(400), Letters(), TEXT, length=400) == dict.fromkeys((0.1, 0.3, 0.5, 0.7, 0.9), 1.0)


def test_a_window_forgets_what_lies_before_it() -> None:
    found = recall(reader(200), Letters(), TEXT, length=400, depths=(0.0, 0.25, 0.75, 1.0))
    assert found == {0.0: 0.0, 0.25: 0.0, 0.75: 1.0, 1.0: 1.0}


def test_a_wrong_answer_does_not_count() -> None:
    assert recall(reader(400, wrong=1), Letters(), TEXT, length=400, depths=(0.5,)) == {0.5: 0.0}


def test_prompts_have_the_length_and_differ() -> None:
    prompts = [plant(Letters(), TEXT, 400, 0.5, seed).prompt for seed in range(8)]
    assert {len(prompt) for prompt in prompts} == {400}
    assert len({prompt.tobytes() for prompt in prompts}) == 8
    assert np.array_equal(prompts[3], plant(Letters(), TEXT, 400, 0.5, 3).prompt)


def test_a_prompt_too_short_for_a_needle() -> None:
    with pytest.raises(BadData, match="no room"):
        recall(reader(50), Letters(), TEXT, length=50)
