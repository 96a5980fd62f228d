"""Sessions: any way to feed the same tokens gives the same logits; forks, truncation, limits, memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import irx
from irx.errors import BatchTooLarge, EmptyPrompt, InputMismatch, MaskError, PromptTooLong
from tests.runtime.conftest import close, eager


@pytest.mark.parametrize("parts", [[20], [1] * 20, [7, 1, 1, 11], [19, 1], [1, 19]], ids=str)
def test_all_ways_to_feed_tokens_are_equal(
    model: Any, fast: irx.Executable, ids: torch.Tensor, parts: list[int]
) -> None:
    session = fast.session(3)
    logits = [session.append(part, logits_to_keep=0) for part in ids.split(parts, dim=1)]
    assert close(torch.cat(logits, 1), eager(model, ids))
    assert session.length == 20


@pytest.mark.parametrize(("keep", "rows"), [(1, 1), (3, 3), (0, 20), (99, 20)])
def test_logits_of_as_many_tokens_as_wanted(
    model: Any, fast: irx.Executable, ids: torch.Tensor, keep: int, rows: int
) -> None:
    logits = fast.session(3).append(ids, logits_to_keep=keep)
    assert close(logits, eager(model, ids)[:, -rows:])


def padded(ids: torch.Tensor, lengths: tuple[int, ...], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The first tokens of each row, padded on one side, and the mask."""
    width = ids.shape[1]
    result, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        place = slice(width - length, width) if side == "left" else slice(0, length)
        result[row, place], mask[row, place] = ids[row, :length], 1
    return result, mask


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_are_the_rows_alone(model: Any, fast: irx.Executable, ids: torch.Tensor, side: str) -> None:
    session, lengths = fast.session(3), [8, 5, 1]
    first, mask = padded(ids[:, :8], tuple(lengths), side)
    made = [session.append(first, mask)]
    made.append(session.append(ids[:, 8:9]))  # a plain step of rows that differ in length
    chunk, mask = padded(ids[:, 9:13], (1, 4, 2), "left" if side == "right" else "right")
    made.append(session.append(chunk, mask))  # a padded chunk behind them
    made.append(session.append(ids[:, 13:16]))  # and a plain chunk
    for row, (one, two) in enumerate(zip(lengths, (1, 4, 2), strict=True)):
        tokens = [ids[row, :one], ids[row, 8:9], ids[row, 9 : 9 + two], ids[row, 13:16]]
        expected = eager(model, torch.cat(tokens)[None])[0]
        ends = torch.tensor([len(t) for t in tokens]).cumsum(0) - 1
        assert close(torch.cat([logits[row] for logits in made]), expected[ends])
    assert session.lengths == (8 + 1 + 1 - 0 + 3, 5 + 1 + 4 + 3, 1 + 1 + 2 + 3)


def test_a_mask_of_ones_changes_nothing(model: Any, fast: irx.Executable, ids: torch.Tensor) -> None:
    logits = fast.session(3).append(ids, torch.ones(3, 20, dtype=torch.bool), logits_to_keep=0)
    assert close(logits, eager(model, ids))


def test_last_rows_of_a_right_padded_row_are_its_last_real_ones(
    model: Any, fast: irx.Executable, ids: torch.Tensor
) -> None:
    tokens, mask = padded(ids[:, :8], (8, 5, 3), "right")
    logits = fast.session(3).append(tokens, mask, logits_to_keep=2)
    for row, length in enumerate((8, 5, 3)):
        assert close(logits[row], eager(model, ids[row : row + 1, :length])[0, -2:])


def test_a_program_without_a_step_that_chooses_says_so(fast: irx.Executable, ids: torch.Tensor) -> None:
    session = fast.session(3)
    session.append(ids)
    assert session.top(ids[:, :1], 1) is None
    assert session.lengths == (20, 20, 20)


def test_forks_are_independent(model: Any, fast: irx.Executable, ids: torch.Tensor) -> None:
    prefix = fast.session(3)
    prefix.append(ids[:, :10])
    forks = [prefix.fork() for _ in range(2)]
    endings = [ids[:, 10:12], ids[:, 14:19]]
    for fork, ending in zip(forks, endings, strict=True):
        assert close(fork.append(ending), eager(model, torch.cat([ids[:, :10], ending], 1))[:, -1:])
    assert [fork.length for fork in forks] == [12, 15]
    assert prefix.length == 10
    assert close(prefix.append(ids[:, 10:11]), eager(model, ids[:, :11])[:, -1:])


def test_a_profile_leaves_the_session_as_it_was(model: Any, fast: irx.Executable, ids: torch.Tensor) -> None:
    session = fast.session(3)
    for part in (ids[:, :8], ids[:, 8:9]):  # a prefill, a decode step
        profile = session.profile(part, repeat=2)
        assert {"irx.kv_append", "irx.kv_attention", "irx.linear"} <= profile.by_op().keys()
        assert any(step.place == "model.layers.1.mlp.down_proj" for step in profile.steps)
        length = session.length
        logits = session.append(part)
        assert session.length == length + part.shape[1]
    assert close(logits, eager(model, ids[:, :9])[:, -1:])


def test_truncation_takes_tokens_back(model: Any, fast: irx.Executable, ids: torch.Tensor) -> None:
    session = fast.session(3)
    session.append(ids)
    session.truncate(6)
    assert session.length == 6
    assert close(session.append(ids[:, 10:13]), eager(model, torch.cat([ids[:, :6], ids[:, 10:13]], 1))[:, -1:])
    session.truncate([9, 4, 2])  # each row its own length
    assert session.lengths == (9, 4, 2)
    logits = session.append(ids[:, :1])
    alone = torch.cat([ids[1:2, :4], ids[1:2, :1]], 1)
    assert close(logits[1], eager(model, alone)[0, -1:])
    session.truncate(0)
    assert close(session.append(ids), eager(model, ids)[:, -1:])


def test_memory_grows_in_buckets_up_to_the_limit(fast: irx.Executable, ids: torch.Tensor) -> None:
    session = fast.session(1)
    assert session.memory() == 0
    token = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, channels, bytes
    sizes = []
    for _ in range(96):
        session.append(ids[:1, :1])
        sizes.append(session.memory() // token)
    assert sorted(set(sizes)) == [64, 96]
    assert fast.memory().cache >= session.memory()
    with pytest.raises(PromptTooLong, match="97 tokens are wanted, but max_length is 96"):
        session.append(ids[:1, :1])
    assert session.length == 96


def test_a_failed_append_leaves_the_session_as_it_was(model: Any, fast: irx.Executable, ids: torch.Tensor) -> None:
    session = fast.session(3)
    session.append(ids[:, :5])
    for wrong in (ids[:2], ids[:, :0], ids.float(), torch.cat([ids] * 5, 1)):
        with pytest.raises((InputMismatch, EmptyPrompt, PromptTooLong)):
            session.append(wrong)
    assert close(session.append(ids[:, 5:]), eager(model, ids)[:, -1:])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([[1, 0, 1], [1, 1, 1]], "row 0 of the mask has a hole"),
        ([[1, 1, 1], [0, 1, 0]], "row 1 of the mask has a hole, or padding on both sides"),
        ([[1, 2, 1], [1, 1, 1]], "other than 0 and 1"),
        ([[1, 1], [1, 1]], r"the mask has shape \[2, 2\]"),
    ],
)
def test_masks_that_are_no_padding(fast: irx.Executable, ids: torch.Tensor, mask: Any, message: str) -> None:
    with pytest.raises(MaskError, match=message):
        fast.session(2).append(ids[:2, :3], torch.tensor(mask))


def test_rows_without_tokens(fast: irx.Executable, ids: torch.Tensor) -> None:
    with pytest.raises(EmptyPrompt):
        fast.session(2).append(ids[:2, :0])
    with pytest.raises(EmptyPrompt, match="row 1"):
        fast.session(2).append(ids[:2, :3], torch.tensor([[1, 1, 1], [0, 0, 0]]))


def test_more_rows_than_compiled_for(fast: irx.Executable) -> None:
    with pytest.raises(BatchTooLarge, match="a batch of 5 rows, but max_batch is 4"):
        fast.session(5)
    with pytest.raises(InputMismatch):
        fast.session(0)


def test_ids_on_another_device(fast: irx.Executable, ids: torch.Tensor) -> None:
    with pytest.raises(InputMismatch, match="on meta, the compiled model on cpu"):
        fast.session(3).append(ids.to("meta"))
