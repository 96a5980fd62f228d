"""Needle recall: pairs of a key and a value planted in a long text at several depths, and asked for at its end.

    answer = lambda ids, count: compiled.generate(torch.tensor(ids), max_new_tokens=count)[:, ids.shape[1] :]
    recall(answer, tokenizer, text, length=2048)        # {0.1: 1.0, 0.3: 0.75, 0.5: 1.0, 0.7: 1.0, 0.9: 1.0}

What a cache or an attention pass forgets, a model cannot look up: perplexity hardly notices it, this does. Answers go
through prompt and decoding as a user's do. Figures mean something only where the original recalls most needles itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from irx.errors import BadData
from irx.ir.opdef import Array

Answer: TypeAlias = Callable[[Array, int], Any]
"""The ids i64 [B, count] that a model continues ids i64 [B, S] with, greedily: an array, or a tensor on the CPU."""

DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
_KEYS = ("garden", "river", "castle", "engine", "market", "island", "window", "forest", "mirror", "bridge")
_ROWS = 4  # prompts that run together


@dataclass(frozen=True)
class Needle:
    """A prompt that ends by asking for what was planted in it, and the ids of the right answer."""

    prompt: Array
    value: Array


def recall(
    answer: Answer,
    tokenizer: Any,
    text: str,
    *,
    length: int,
    depths: Sequence[float] = DEPTHS,
    needles: int = 8,
    seed: int = 0,
) -> dict[float, float]:
    """By depth (0 is the start of the text), the share of `needles` whose value is answered without a mistake.

    Prompts have `length` tokens of `tokenizer`; `text` fills them, repeated where it is too short. Equal seeds give
    equal needles. Raises BadData for a length that has no room for a needle and its question.
    """
    found: dict[float, float] = {}
    for depth in depths:
        planted = [plant(tokenizer, text, length, depth, seed * 1_000_003 + i) for i in range(needles)]
        groups = [planted[i : i + _ROWS] for i in range(0, needles, _ROWS)]
        found[depth] = sum(_right(answer, group) for group in groups) / needles
    return found


def plant(tokenizer: Any, text: str, length: int, depth: float, seed: int) -> Needle:
    """One needle at a depth of a prompt of `length` tokens.

    Values have two digits: the question at the end looks at the first one, and what chooses tokens by their attention
    keeps its neighbours; further digits are looked for only when those before them are answered.
    """
    generator = np.random.default_rng(seed)
    key, value = _KEYS[generator.integers(len(_KEYS))], str(generator.integers(10, 100))
    fact, question = f" The secret number of the {key} is {value}.", f" The secret number of the {key} is"
    needle, asked = _ids(tokenizer, fact), _ids(tokenizer, question)
    whole = _ids(tokenizer, f"{question} {value}")
    room = length - len(needle) - len(asked)
    if room < 1 or whole[: len(asked)] != asked:
        raise BadData(f"{length} tokens have no room for a needle of {len(needle)} and its question of {len(asked)}")
    words = _ids(tokenizer, text)
    filler = (words * (room // max(len(words), 1) + 1))[:room]
    place = round(depth * room)
    prompt = np.array([*filler[:place], *needle, *filler[place:], *asked], np.int64)
    return Needle(prompt, np.array(whole[len(asked) :], np.int64))


def _right(answer: Answer, needles: Sequence[Needle]) -> int:
    """How many needles of equal length are answered."""
    count = max(len(needle.value) for needle in needles)
    answers = np.asarray(answer(np.stack([needle.prompt for needle in needles]), count))
    pairs = zip(answers, needles, strict=True)
    return sum(np.array_equal(found[: len(needle.value)], needle.value) for found, needle in pairs)


def _ids(tokenizer: Any, text: str) -> list[int]:
    inner = getattr(tokenizer, "backend_tokenizer", tokenizer)
    return list(inner.encode(text, add_special_tokens=False).ids)
