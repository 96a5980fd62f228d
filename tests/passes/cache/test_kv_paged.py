"""kv-paged: the dense cache's results, in pages of any size; what is allocated, shared, copied and given back."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import irx
from irx.backends.tvm.codegen import missing
from irx.errors import OutOfPages
from irx.ir.dims import Range
from tests.passes.small_models import WORDS, decoder

KERNELS = pytest.mark.skipif(missing() is not None, reason=str(missing()))
SIZES = [("torch:cpu", 1), ("torch:cpu", 3), ("torch:cpu", 1000), pytest.param("cpu", 64, marks=KERNELS)]
TARGETS = [("torch:cpu", 3), pytest.param("cpu", 64, marks=KERNELS)]
TOKEN = {"torch:cpu": 2 * (8 + 8) * 4, "cpu": 2 * (8 + 16) * 4}  # bytes: 2 heads of 8 channels, blocks pad values to 16
LONGEST = 200


@cache
def compiled(target: str, text: str) -> irx.Executable:
    program = decoder(1)
    program.sizes["S"], program.meta["max_length"] = Range(1, LONGEST), LONGEST
    return irx.compile(program, target=target, pipeline=f"default | {text}" if text else "default", strict=True)


def paged(target: str, page: int) -> irx.Executable:
    return compiled(target, f"kv-paged{{page={page}}}")


def ids(batch: int = 2, seed: int = 1) -> Any:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, WORDS, (batch, LONGEST)))


def same(found: Any, target: str, wanted: Any) -> bool:
    """To the bit, but for kernels, which are compared with torch."""
    return torch.equal(found, wanted) if target == "torch:cpu" else torch.allclose(found, wanted, atol=1e-4)


def dense() -> irx.Executable:
    return compiled("torch:cpu", "")


def logits(session: irx.Session, tokens: Any, chunks: list[int]) -> Any:
    parts = tokens[:, : sum(chunks)].split(chunks, dim=1)
    return torch.cat([session.append(part, logits_to_keep=0) for part in parts], 1)


@pytest.mark.parametrize(("target", "page"), SIZES)
def test_the_results_of_the_dense_cache(target: str, page: int) -> None:
    """Prompts and steps that end before, at and behind the end of a page; prompts over several pages."""
    for chunks in ([63, 1, 1, 1, 60, 1, 1, 1, 1], [64, 1, 1], [65, 70, 1], [2, 1, 1, 1, 3, 1]):
        found = logits(paged(target, page).session(2), ids(), chunks)
        assert same(found, target, logits(dense().session(2), ids(), chunks)), chunks


@pytest.mark.parametrize(("target", "page"), TARGETS)
def test_rows_of_different_lengths(target: str, page: int) -> None:
    """They go over the ends of their pages at different times, and take no more than they need."""
    tokens, made = ids(3), [paged(target, page), dense()]
    mask = (torch.arange(70) >= torch.tensor([[0], [7], [66]])).long()
    sessions = [one.session(3) for one in made]
    for part in (tokens[:, :70], *tokens[:, 70:].split(1, dim=1)[:64]):
        given = mask if part.shape[1] > 1 else None
        found, wanted = (session.append(part, given) for session in sessions)
        assert same(found, target, wanted), sessions[0].lengths
    lengths = sessions[0].lengths
    assert lengths == (134, 127, 68)
    needed = sum(-(-n // page) for n in lengths)
    held = sessions[0].memory() - 3 * 4 * columns(sessions[0])
    assert needed <= held / (page * TOKEN[target]) <= 1 + needed * 1.25
    assert held / TOKEN[target] < sessions[1].memory() / TOKEN["torch:cpu"]


def columns(session: irx.Session) -> int:
    """Of a session's only table."""
    (state,) = session._states.values()
    return state.number("columns")


def test_a_prompt_takes_the_pages_that_it_fills() -> None:
    for length, pages in ((1, 1), (7, 1), (8, 1), (9, 2), (64, 8), (65, 9)):
        session = paged("torch:cpu", 8).session(1)
        session.append(ids(1)[:, :length])
        assert session.memory() == pages * (8 * TOKEN["torch:cpu"] + 4), length


@pytest.mark.parametrize(("target", "page"), TARGETS)
def test_forks_share_pages_until_they_write(target: str, page: int) -> None:
    """Both go on by steps, in turns, so that the pages move under either."""
    made, tokens = paged(target, page), [ids(1), ids(1, seed=2)]
    session = made.session(1)
    session.append(tokens[0][:, :70])
    before = session.memory()
    other = session.fork()
    assert before <= session.memory() + other.memory() <= before + 4 * columns(other) + 1
    found: list[list[Any]] = [[], []]
    for i in range(70, 140):
        for one, own, out in zip((session, other), tokens, found, strict=True):
            out.append(one.append(own[:, i : i + 1]))
    for own, out in zip(tokens, found, strict=True):
        fresh = dense().session(1)
        fresh.append(tokens[0][:, :70])
        assert same(torch.cat(out, 1), target, logits(fresh, own[:, 70:], [1] * 70))


def test_pages_are_given_back() -> None:
    made = compiled("torch:cpu", "kv-paged{page=4, pages=6}")
    session = made.session(2)
    session.append(ids()[:, :12])
    with pytest.raises(OutOfPages, match=r"8 pages of 4 tokens are wanted, but the cache .* has 6") as error:
        session.append(ids()[:, 12:13])
    assert "kv-paged{pages=8}" in str(error.value)
    session.truncate([4, 12])  # a row gives back two pages; the other one takes one, and so does the first
    wanted = dense().session(2)
    wanted.append(ids()[:, :12])
    wanted.truncate([4, 12])
    for i in range(12, 16):
        assert torch.equal(session.append(ids()[:, i : i + 1]), wanted.append(ids()[:, i : i + 1]))
    other = session.fork()
    with pytest.raises(OutOfPages):
        other.append(ids()[:, 16:17])
    del other
    session.truncate([7, 12])
    session.append(ids()[:, 16:17])


@KERNELS
def test_kernels_walk_the_table() -> None:
    made = paged("cpu", 64)
    assert not made.graphs["prefill"].fallbacks and not made.graphs["decode"].fallbacks
    assert "page=64" in str(made.program)


def test_codes_lie_in_pages_too() -> None:
    chunks = [7, 1, 1, 9]
    found = logits(compiled("torch:cpu", "kv-paged{page=4} | kv-quantize{bits=4}").session(2), ids(), chunks)
    assert torch.equal(found, logits(compiled("torch:cpu", "kv-quantize{bits=4}").session(2), ids(), chunks))
