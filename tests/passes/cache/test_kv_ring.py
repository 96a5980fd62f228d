"""kv-ring: a cache of the window alone gives what `forward` gives, in whatever chunks; its bytes, and how far back."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import irx
from irx.backends.tvm.codegen import missing
from irx.errors import PassConflict, TokensEvicted
from irx.ir.program import Program
from irx.pipeline.base import Effect
from irx.runtime.kv_ring import Ring
from tests.cases.running import find_passes
from tests.passes.small_models import WORDS, decoder

KERNELS = pytest.mark.skipif(missing() is not None, reason=str(missing()))
TARGETS = ["torch:cpu", pytest.param("cpu", marks=KERNELS)]
WINDOW, LENGTH = 8, 40
SINKS = f"kv-ring{{window={WINDOW}, sinks=2}}"
CHUNKS = [[1] * 14 + [26], [20, 1, 1, 1, 13, 1, 1, 1, 1], [5, 30, 1, 1, 1, 1, 1]]
TOKEN = 2 * 2 * 2 * 8 * 4  # bytes: keys and values of 2 layers and 2 heads of 8 channels in float32


def windowed() -> Program:
    """The small decoder, all of whose attention sees a window."""
    program = decoder(2)
    for graph in program.graphs.values():
        for node in graph.nodes:
            if node.op.name in ("attention", "kv_attention"):
                node.attrs["window"] = WINDOW
    return program


@cache
def compiled(target: str, text: str) -> irx.Executable:
    program = windowed() if text == "kv-ring" else decoder(2)
    return irx.compile(program, target=target, pipeline=f"default | {text}", strict=True)


def ids(batch: int = 2) -> Any:
    return torch.from_numpy(np.random.default_rng(1).integers(0, WORDS, (batch, LENGTH)))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("text", ["kv-ring", SINKS])
def test_chunks_and_steps_give_what_forward_gives(target: str, text: str) -> None:
    made = compiled(target, text)
    whole = made(ids=ids())
    for chunks in CHUNKS:
        session = made.session(2)
        parts = [session.append(part, logits_to_keep=0) for part in ids().split(chunks, dim=1)]
        assert torch.allclose(torch.cat(parts, 1), whole, atol=2e-5 * float(whole.abs().max())), chunks


def test_a_model_with_windows_computes_what_it_did() -> None:
    exact = irx.compile(windowed(), target="torch:cpu", pipeline="default")
    assert torch.equal(compiled("torch:cpu", "kv-ring")(ids=ids()), exact(ids=ids()))
    assert not torch.allclose(compiled("torch:cpu", SINKS)(ids=ids()), exact(ids=ids()), atol=1e-3)


def test_effects() -> None:
    (own,), (given,) = find_passes("kv-ring"), find_passes(SINKS)
    assert (own.effect, given.effect) == (Effect.EXACT, Effect.LOSSY)
    with pytest.raises(PassConflict):
        find_passes(f"{SINKS} | kv-evict")


@pytest.mark.parametrize("target", TARGETS)
def test_padded_rows_are_the_rows_alone(target: str) -> None:
    made, tokens = compiled(target, SINKS), ids()
    mask = (torch.arange(24) >= torch.tensor([[0], [10]])).long()
    session = made.session(2)
    found = [session.append(tokens[:, :24], mask), *(session.append(tokens[:, i : i + 1]) for i in range(24, 36))]
    alone = made.session(1)
    wanted = [alone.append(tokens[1:, 10:24]), *(alone.append(tokens[1:, i : i + 1]) for i in range(24, 36))]
    assert torch.allclose(torch.cat(found, 1)[1], torch.cat(wanted, 1)[0], atol=2e-5)


@KERNELS
def test_decoding_and_prompts_are_left_to_kernels() -> None:
    for text in ("kv-ring", SINKS):
        assert not any(graph.fallbacks for graph in compiled("cpu", text).graphs.values()), text


def test_bytes_are_those_of_the_window() -> None:
    """After a prompt, and after as many steps as one likes."""
    session = compiled("torch:cpu", SINKS).session(2)
    session.append(ids()[:, :25])
    assert session.memory() == 2 * TOKEN * (WINDOW + 2)
    for i in range(25, 40):
        session.append(ids()[:, i : i + 1])
    assert session.memory() == 2 * TOKEN * (WINDOW + 2)
    short = compiled("torch:cpu", SINKS).session(2)
    short.append(ids()[:, :3])
    assert short.memory() == 2 * TOKEN * 3


def test_slots_of_positions() -> None:
    """The slot of a position holds it until the window has passed; the first stay; no slot is read before it is set."""
    ring = Ring.of(window=3, sinks=2, batch=1, heads=1, device=torch.device("cpu"))
    assert ring.slots_of(torch.arange(9)[None]).tolist() == [[0, 1, 2, 3, 4, 2, 3, 4, 2]]
    held = [ring.slot_positions(6, (length,))[0, 0].tolist() for length in (0, 1, 4, 5, 6, 9)]
    assert held[:3] == [[-1] * 6, [0, -1, -1, -1, -1, -1], [0, 1, 2, 3, -1, -1]]
    assert held[3:] == [[0, 1, 2, 3, 4, -1], [0, 1, 5, 3, 4, -1], [0, 1, 8, 6, 7, -1]]
    for length, row in zip((0, 1, 4, 5, 6, 9), held, strict=True):
        assert all(slot == ring.slots_of(torch.tensor([[p]])).item() for slot, p in enumerate(row) if p >= 0), length


def test_sessions_go_back_while_nothing_is_forgotten() -> None:
    made = compiled("torch:cpu", SINKS)
    session = made.session(2)
    session.append(ids()[:, :9])
    other = session.fork()
    session.truncate(4)
    found = session.append(ids()[:, 4:5])
    fresh = made.session(2)
    assert torch.allclose(found, fresh.append(ids()[:, :5]), atol=1e-5)
    other.append(ids()[:, 9:20])
    with pytest.raises(TokensEvicted, match="truncated to 19"):
        other.truncate(19)
    other.truncate(0)
    assert torch.allclose(other.append(ids()[:, :5]), found, atol=1e-5)
