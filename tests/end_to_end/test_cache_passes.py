"""Cache passes on a trained model: fewer bytes in sessions, and little lost."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

import irx
from tests.end_to_end.smollm2 import PROMPTS, path


@cache
def exact() -> irx.Executable:
    """The model with a cache of float32."""
    return irx.compile(str(path()), target="torch", pipeline="none")


@cache
def prompt() -> Tensor:
    """All prompts behind each other: ids [1, T]."""
    tokenizer = exact().tokenizer
    assert tokenizer is not None
    return torch.tensor([tokenizer.encode("\n".join(PROMPTS)).ids])


@cache
def wanted() -> Tensor:
    """The log-probabilities of what follows each of its tokens, with that cache."""
    return likely(exact()(prompt()).logits)


def likely(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.float(), -1)


def check_near(found: Tensor, most: float, top: float) -> None:
    """Less than `most` of KL, and the same likeliest token more often than `top`."""
    lost = float((wanted().exp() * (wanted() - found)).sum(-1).mean())
    assert 1e-6 < lost < most
    assert float((wanted().argmax(-1) == found.argmax(-1)).float().mean()) > top


@pytest.mark.parametrize(("bits", "share", "most", "top"), [(8, 68 / 256, 0.005, 0.9), (4, 36 / 256, 0.4, 0.5)])
def test_codes_are_smaller_and_near(bits: int, share: float, most: float, top: float) -> None:
    """Against float32 keys and values; a session's last logits are those of the whole prompt."""
    coded = irx.compile(str(path()), target="torch", pipeline=f"default | kv-quantize{{bits={bits}}}")
    found = likely(coded(prompt()).logits)
    check_near(found, most, top)
    sessions = [model.session(1) for model in (exact(), coded)]
    last = [likely(session.append(prompt())[:, -1]) for session in sessions]
    assert torch.allclose(last[1], found[:, -1], atol=0.01)
    assert sessions[1].memory() == share * sessions[0].memory()
    assert coded.memory().cache == sessions[1].memory()


@pytest.mark.parametrize(("bits", "most", "top"), [(4, 0.05, 0.85), (2, 0.6, 0.5)])
def test_codes_with_a_tail_lose_little(bits: int, most: float, top: float) -> None:
    """With a short tail, so that most of the prompt is codes; a session's steps see what `forward` says."""
    pipeline = f"default | kv-quantize{{scheme=kivi, bits={bits}, group=16, tail=16}}"
    coded = irx.compile(str(path()), target="torch", pipeline=pipeline)
    ids, found = prompt(), likely(coded(prompt()).logits)
    check_near(found, most, top)
    assert torch.allclose(wanted()[:, :16], found[:, :16], atol=0.01)
    session = coded.session(1)
    parts = [session.append(ids[:, :-3], logits_to_keep=0), *(session.append(ids[:, [i]]) for i in (-3, -2, -1))]
    assert torch.allclose(likely(torch.cat(parts, 1)), found, atol=0.05)
