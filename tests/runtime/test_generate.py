"""Generation: the model's own tokens, ends and filling, sampling, streaming, continued sessions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import irx
from irx.errors import BadOption, InputMismatch, PromptTooLong, UnsupportedArgument
from irx.runtime.generate import Ending, Rows
from irx.runtime.sampling import likeliest, sample


def greedy(model: Any, ids: torch.Tensor, count: int, **options: Any) -> list[list[int]]:
    options = {"eos_token_id": None, "pad_token_id": 0, **options}
    made: list[list[int]] = model.generate(ids, max_new_tokens=count, do_sample=False, **options).tolist()
    return made


def test_greedy_tokens_are_the_models_own(model: Any, fast: irx.Executable, ids: torch.Tensor) -> None:
    assert fast.generate(ids, max_new_tokens=30).tolist() == greedy(model, ids, 30)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_continue_as_alone(model: Any, fast: irx.Executable, ids: torch.Tensor, side: str) -> None:
    mask = torch.ones_like(ids)
    mask[1, slice(0, 9) if side == "left" else slice(11, 20)] = 0
    alone = ids[1:2, mask[1].bool()]
    tokens = fast.generate(ids, max_new_tokens=12, attention_mask=mask)
    assert tokens[1, 20:].tolist() == greedy(model, alone, 12)[0][11:]
    assert tokens[0].tolist() == greedy(model, ids[:1], 12)[0]
    assert torch.equal(tokens[:, :20], ids), "the prompt is returned as it was given"


def ends_early(model: Any, ids: torch.Tensor) -> int:
    """A token that some row produces and another does not, within 20 steps."""
    rows = [set(row[20:]) for row in greedy(model, ids, 20)]
    return next(iter(rows[0] - rows[1]))


def test_rows_that_ended_are_filled(model: Any, fast: irx.Executable, ids: torch.Tensor) -> None:
    end = ends_early(model, ids)
    free = greedy(model, ids, 20)
    tokens = fast.generate(ids, max_new_tokens=20, eos_token_id=end, pad_token_id=3).tolist()
    for row, expected in zip(tokens, free, strict=True):
        new = expected[20:]
        stop = new.index(end) + 1 if end in new else len(new)
        filled = new[:stop] + [3] * (20 - stop)
        assert row[20:] == filled[: len(row) - 20]
    assert tokens[0][-1] == 3
    listed = fast.generate(ids, max_new_tokens=20, eos_token_id=[end, end], pad_token_id=3).tolist()
    assert listed == tokens


def test_generation_stops_when_all_rows_ended(model: Any, fast: irx.Executable, ids: torch.Tensor) -> None:
    first = greedy(model, ids[:1], 10)[0][20:]
    tokens = fast.generate(ids[:1], max_new_tokens=10, eos_token_id=first[2])
    assert tokens[0, 20:].tolist() == first[: first.index(first[2]) + 1]


def test_model_means_the_models_own_end(fast: irx.Executable, ids: torch.Tensor) -> None:
    assert fast._compiled.meta["eos"] == [5]
    logits = torch.zeros(3, 128)
    logits[:, 5] = 1
    assert fast._ends("model", None) == (frozenset({5}), 0)
    with pytest.raises(UnsupportedArgument, match="eos_token_id='models'"):
        fast.generate(ids, max_new_tokens=1, eos_token_id="models")


def test_streaming_sees_every_step(fast: irx.Executable, ids: torch.Tensor) -> None:
    seen: list[list[int]] = []
    tokens = fast.generate(ids, max_new_tokens=5, stream=lambda step: seen.append(step.tolist()))
    assert torch.tensor(seen).T.tolist() == tokens[:, 20:].tolist()


def test_a_seed_repeats_a_draw(fast: irx.Executable, ids: torch.Tensor) -> None:
    def draw(seed: int, **options: Any) -> list[list[int]]:
        made: list[list[int]] = fast.generate(ids, max_new_tokens=12, temperature=1.5, seed=seed, **options).tolist()
        return made

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(1, top_k=1) == fast.generate(ids, max_new_tokens=12).tolist()
    assert draw(1, top_p=1e-9) == fast.generate(ids, max_new_tokens=12).tolist()


def test_draws_follow_the_restricted_probabilities() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.2, 0.2, 0.1]])).expand(4000, 4)
    uniform = torch.rand(4000, generator=torch.Generator().manual_seed(0))

    def shares(**options: Any) -> list[float]:
        counts = sample(logits, uniform, temperature=1.0, **options).bincount(minlength=4)
        return [round(float(n) / 4000, 1) for n in counts]

    assert shares() == [0.5, 0.2, 0.2, 0.1]
    assert shares(top_k=2) == [0.7, 0.3, 0.0, 0.0]
    assert shares(top_p=0.6) == [0.7, 0.3, 0.0, 0.0]
    assert shares(top_p=0.5) == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_likeliest_is_the_first_of_the_largest(dtype: torch.dtype) -> None:
    logits = torch.tensor([[[0.5, 2.0, -1.0, 2.0]], [[-3.0, -4.0, -torch.inf, -2.5]]], dtype=dtype)
    assert likeliest(logits).tolist() == [[1], [3]]
    assert likeliest(logits.transpose(0, 1)).tolist() == [[1, 3]], "not contiguous"
    assert likeliest(logits).dtype == torch.int64


def test_rows_are_filled_after_their_end() -> None:
    rows = Rows(2, Ending(most=9, tokens={7, 8}, pad=1))
    steps = [[7, 3], [4, 4], [4, 8], [4, 5]]
    assert [rows.filled(torch.tensor(step)[:, None]).flatten().tolist() for step in steps[:2]] == [[7, 3], [1, 4]]
    assert not rows.all_ended
    assert rows.filled(torch.tensor(steps[2])[:, None]).flatten().tolist() == [1, 8]
    assert rows.all_ended


def test_a_session_is_continued(model: Any, fast: irx.Executable, ids: torch.Tensor) -> None:
    session = fast.session(1)
    first = fast.generate(ids[:1, :6], max_new_tokens=4, session=session)
    assert session.length == 10, "prompt and all new tokens"
    second = fast.generate(ids[:1, 6:9], max_new_tokens=4, session=session)
    whole = torch.cat([first, ids[:1, 6:9]], 1)
    assert second[0, 3:].tolist() == greedy(model, whole, 4)[0][13:]


def test_a_continued_session_forgets_the_filling(model: Any, fast: irx.Executable, ids: torch.Tensor) -> None:
    end = ends_early(model, ids)
    session = fast.session(3)
    tokens = fast.generate(ids, max_new_tokens=20, eos_token_id=end, pad_token_id=3, session=session)
    new = tokens[:, 20:].tolist()
    lengths = [20 + (row.index(end) + 1 if end in row else len(row)) for row in new]
    assert list(session.lengths) == lengths
    more = fast.generate(ids[:, :2], max_new_tokens=3, session=session)
    for row, length in enumerate(lengths):
        whole = torch.cat([tokens[row, :length], ids[row, :2]])[None]
        assert more[row, 2:].tolist() == greedy(model, whole, 3)[0][-3:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "asks for nothing"),
        ({"max_new_tokens": 1, "temperature": -1.0}, "negative"),
        ({"max_new_tokens": 1, "temperature": 1.0, "top_k": 0}, "leaves no token"),
        ({"max_new_tokens": 1, "temperature": 1.0, "top_p": 1.5}, "no probability"),
    ],
)
def test_options_out_of_range(fast: irx.Executable, ids: torch.Tensor, options: Any, message: str) -> None:
    with pytest.raises(BadOption, match=message):
        fast.generate(ids, **options)


def test_too_long_is_said_before_anything_runs(fast: irx.Executable, ids: torch.Tensor) -> None:
    session = fast.session(3)
    with pytest.raises(PromptTooLong, match="97 tokens are wanted, but max_length is 96"):
        fast.generate(ids, max_new_tokens=77, session=session)
    assert session.length == 0
    assert fast.generate(ids[:1], max_new_tokens=76).shape == (1, 96)


def test_prompts_that_are_none(fast: irx.Executable, ids: torch.Tensor) -> None:
    for wrong in (None, ids[0], ids.float(), ids > 3):
        with pytest.raises(InputMismatch, match="generate needs ids"):
            fast.generate(wrong, max_new_tokens=1)
    with pytest.raises(UnsupportedArgument, match="no encoder"):
        fast.generate(ids, max_new_tokens=1, input_features=ids.float())
