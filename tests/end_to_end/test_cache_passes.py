"""Cache passes on a trained model: fewer bytes in sessions, and little lost."""

from __future__ import annotations

import pytest
import torch

import irx
from tests.end_to_end.smollm2 import PROMPTS, path


@pytest.mark.parametrize(("bits", "share", "most", "top"), [(8, 68 / 256, 0.005, 0.9), (4, 36 / 256, 0.4, 0.5)])
def test_codes_are_smaller_and_near(bits: int, share: float, most: float, top: float) -> None:
    """Against float32 keys and values; a session's last logits are those of the whole prompt."""
    exact = irx.compile(str(path()), target="torch", pipeline="none")
    coded = irx.compile(str(path()), target="torch", pipeline=f"default | kv-quantize{{bits={bits}}}")
    tokens = coded.tokenizer.encode("\n".join(PROMPTS)).ids
    ids = torch.tensor([tokens])
    wanted, found = (torch.log_softmax(model(ids).logits.float(), -1) for model in (exact, coded))
    lost = float((wanted.exp() * (wanted - found)).sum(-1).mean())
    assert 1e-6 < lost < most
    assert float((wanted.argmax(-1) == found.argmax(-1)).float().mean()) > top
    sessions = [model.session(1) for model in (exact, coded)]
    last = [torch.log_softmax(session.append(ids)[:, -1].float(), -1) for session in sessions]
    assert torch.allclose(last[1], found[:, -1], atol=0.01)
    assert sessions[1].memory() == share * sessions[0].memory()
    assert coded.memory().cache == sessions[1].memory()


@pytest.mark.parametrize(("bits", "most", "top"), [(4, 0.05, 0.85), (2, 0.6, 0.5)])
def test_codes_with_a_tail_lose_little(bits: int, most: float, top: float) -> None:
    """With a short tail, so that most of the prompt is codes; a session's steps see what `forward` says."""
    exact = irx.compile(str(path()), target="torch", pipeline="none")
    pipeline = f"default | kv-quantize{{scheme=kivi, bits={bits}, group=16, tail=16}}"
    coded = irx.compile(str(path()), target="torch", pipeline=pipeline)
    ids = torch.tensor([coded.tokenizer.encode("\n".join(PROMPTS)).ids])
    wanted, found = (torch.log_softmax(model(ids).logits.float(), -1) for model in (exact, coded))
    lost = float((wanted.exp() * (wanted - found)).sum(-1).mean())
    assert 1e-6 < lost < most
    assert float((wanted.argmax(-1) == found.argmax(-1)).float().mean()) > top
    assert torch.allclose(wanted[:, :16], found[:, :16], atol=0.01)
    session = coded.session(1)
    parts = [session.append(ids[:, :-3], logits_to_keep=0), *(session.append(ids[:, [i]]) for i in (-3, -2, -1))]
    assert torch.allclose(torch.log_softmax(torch.cat(parts, 1).float(), -1), found, atol=0.05)
