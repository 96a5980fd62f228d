"""A small Llama on the kernels of a GPU, interpreted: a prompt and a step as the torch backend has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import irx
from irx.backends.triton.plan import Plan

pytest.importorskip("triton", reason="the gpu extra is not installed")
transformers = pytest.importorskip("transformers", reason="the hf extra is not installed")

LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def llama(dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval().requires_grad_(False).to(dtype)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
def test_a_prompt_and_a_step_are_those_of_torch(dtype: torch.dtype) -> None:
    model, ids = llama(dtype), torch.tensor([[3, 1, 4, 1, 5, 9, 2]])
    made, wanted = (irx.compile(model, target=target).session() for target in ("triton:cpu", "torch:cpu"))
    for tokens in (ids, torch.tensor([[6]])):
        found, expected = made.append(tokens).float(), wanted.append(tokens).float()
        assert (found - expected).abs().max() <= LIMITS[dtype] * expected.abs().max()
    best, logits = made.top(torch.tensor([[8]]), 7), wanted.append(torch.tensor([[8]]))[0, 0].float()
    assert best is not None and sorted(best[1].flatten().tolist()) == list(range(40))
    assert (best[0][0, 0] - logits[best[1][0, 0]]).abs().max() <= LIMITS[dtype] * logits.abs().max()
    assert (best[0][..., 1:] <= best[0][..., :-1]).all()


def test_every_node_of_a_llama_has_kernels() -> None:
    ledger = irx.compile(llama(torch.bfloat16), target="triton:cpu").ledger()
    assert ledger.summary.fallbacks == {}


OTHER_CACHES = (
    "kv-evict{keep=0.5, window=2, sinks=1}",
    "kv-ring{window=4, sinks=0}",
    "kv-quantize{scheme=kivi, bits=4, group=4, tail=4}",
)


@pytest.mark.parametrize("one", OTHER_CACHES)
def test_caches_that_lose_tokens_or_round_them_are_read_by_kernels(one: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plan, "_by_torch", None)
    model, ids = llama(torch.float32), torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3]])
    executables = [irx.compile(model, target=target, pipeline=f"default | {one}") for target in ("triton:cpu", "torch")]
    made, wanted = (executable.session() for executable in executables)
    for tokens in (ids, torch.tensor([[5]])):
        found, expected = made.append(tokens), wanted.append(tokens)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert made.memory() == wanted.memory()
    assert not [name for name in executables[0].ledger().summary.fallbacks if "decode" in name]


def test_pages_are_found_by_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two rows, and of a fork that reads pages of both."""
    monkeypatch.setattr(Plan, "_by_torch", None)
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3], [2, 7, 1, 8, 2, 8, 1, 8, 2, 8]])
    pipeline = "default | kv-paged{page=4}"
    executables = [irx.compile(llama(torch.float32), target=t, pipeline=pipeline) for t in ("triton:cpu", "torch")]
    assert executables[0].ledger().summary.fallbacks == {}
    sessions = [executable.session(2) for executable in executables]
    for tokens in (ids, torch.tensor([[5], [4]])):
        found, expected = (session.append(tokens) for session in sessions)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
        sessions = [session.fork() for session in sessions]
    assert sessions[0].memory() == sessions[1].memory()


def test_a_prefix_is_read_by_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plan, "_by_torch", None)
    start, own = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]]), torch.tensor([[5, 3], [5, 8]])
    pipeline = "default | kv-share-prefix"
    executables = [irx.compile(llama(torch.float32), target=t, pipeline=pipeline) for t in ("triton:cpu", "torch")]
    assert executables[0].ledger().summary.fallbacks == {}
    made, wanted = (executable.session(2, prefix=executable.prefix(start)) for executable in executables)
    for tokens in (own, torch.tensor([[5], [4]])):
        found, expected = made.append(tokens), wanted.append(tokens)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_steps_over_codes_with_a_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a prompt, which torch runs."""
    monkeypatch.setattr(Plan, "_by_torch", None)
    pipeline = "default | kv-quantize{scheme=kivi, bits=2, group=8, tail=8}"
    executables = [irx.compile(llama(torch.float32), target=t, pipeline=pipeline) for t in ("triton:cpu", "torch")]
    fallbacks = executables[0].ledger().summary.fallbacks
    assert not [name for name in fallbacks if "decode" in name]
    made, wanted = (executable.session() for executable in executables)
    for tokens in (torch.arange(22)[None], torch.tensor([[5]]), torch.tensor([[7]])):
        found, expected = made.append(tokens), wanted.append(tokens)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert made.memory() == wanted.memory()
