"""Prefixes that rows share: stored once, and the same function as rows that hold all their tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import irx
from irx.errors import InputMismatch, SharedPrefix, UnsupportedArgument
from tests.runtime.conftest import close, eager

LENGTH = 70  # of the prefix: more than a tile of 64 keys


@pytest.fixture(scope="module", params=["torch", "tvm:cpu"])
def sharing(model: Any, request: pytest.FixtureRequest) -> irx.Executable:
    pipeline = "default | kv-share-prefix"
    return irx.compile(model, target=request.param, strict=True, max_batch=4, max_length=128, pipeline=pipeline)


def _ids(rows: int, count: int, seed: int) -> torch.Tensor:
    return torch.randint(6, 128, (rows, count), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("batch", [1, 3])
def test_rows_are_what_they_would_be_alone(model: Any, sharing: irx.Executable, batch: int) -> None:
    """A chunk, single steps and a longer chunk, of every row its own."""
    start, own = _ids(1, LENGTH, 0), _ids(batch, 40, 1)
    prefix = sharing.prefix(start)
    session = sharing.session(batch, prefix=prefix)
    assert session.lengths == (LENGTH,) * batch
    made = [session.append(part, logits_to_keep=0) for part in own.split([5, 1, 1, 33], dim=1)]
    expected = eager(model, torch.cat([start.expand(batch, -1), own], 1))[:, LENGTH:]
    assert close(torch.cat(made, 1), expected)


def test_padded_rows_and_steps_of_rows_of_different_lengths(model: Any, sharing: irx.Executable) -> None:
    start, own = _ids(1, LENGTH, 2), _ids(2, 6, 3)
    session = sharing.session(2, prefix=sharing.prefix(start))
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    session.append(own[:, :4] * mask, mask)
    found = session.append(own[:, 4:5])
    for row, tokens in enumerate((own[0, :5], torch.cat([own[1, 2:4], own[1, 4:5]]))):
        assert close(found[row], eager(model, torch.cat([start[0], tokens])[None])[0, -1:])


def test_a_prefix_is_stored_once(sharing: irx.Executable) -> None:
    before = sharing.memory().cache
    prefix = sharing.prefix(_ids(1, LENGTH, 4))
    sessions = [sharing.session(2, prefix=prefix) for _ in range(2)]
    for session in sessions:
        session.append(_ids(2, 3, 5))
    rows = sum(session.memory() for session in sessions)
    assert sharing.memory().cache - before == prefix.memory() + rows
    assert rows == 4 * prefix.memory() // 2  # buckets of 64 tokens in a row of four, of 128 in the prefix


def test_sessions_leave_the_prefix_as_it_is(model: Any, sharing: irx.Executable) -> None:
    """Forks, cuts, and generated text; a second session finds what the first one found."""
    start, own = _ids(1, LENGTH, 6), _ids(2, 4, 7)
    prefix = sharing.prefix(start)
    first = sharing.session(2, prefix=prefix)
    logits = first.append(own)
    fork = first.fork()
    fork.append(own[:, :1])
    first.truncate(LENGTH)
    assert torch.equal(first.append(own), logits)
    assert close(fork.append(own[:, 1:2]), eager(model, torch.cat([start.expand(2, -1), own, own[:, :2]], 1))[:, -1:])
    with pytest.raises(SharedPrefix, match=f"first {LENGTH}"):
        first.truncate(LENGTH - 1)
    second = sharing.session(2, prefix=prefix)
    assert torch.equal(second.append(own), logits)
    text = sharing.generate(own, max_new_tokens=4, session=sharing.session(2, prefix=prefix))
    whole = sharing.generate(torch.cat([start.expand(2, -1), own], 1), max_new_tokens=4)
    assert torch.equal(text, whole[:, LENGTH:])


def test_sessions_without_a_prefix_are_as_before(model: Any, sharing: irx.Executable) -> None:
    ids = _ids(2, 20, 8)
    session = sharing.session(2)
    made = [session.append(part, logits_to_keep=0) for part in ids.split([18, 1, 1], dim=1)]
    assert close(torch.cat(made, 1), eager(model, ids))


def test_what_shares_no_prefix_says_so(fast: irx.Executable, sharing: irx.Executable) -> None:
    with pytest.raises(UnsupportedArgument, match="kv-share-prefix"):
        fast.prefix(_ids(1, 4, 9))
    with pytest.raises(InputMismatch):
        sharing.prefix(_ids(2, 4, 9))
