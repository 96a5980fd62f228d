"""kv-evict: what stays after a prompt, that it is all that decoding sees, on torch and on kernels, and its limits."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

import irx
from irx.analysis.calibration import Calibration
from irx.analysis.reference import evaluate
from irx.backends.torch.kernels import eviction
from irx.backends.tvm.codegen import missing
from irx.errors import CalibrationNeeded, TokensEvicted
from irx.ir.dims import Range
from irx.ir.opdef import lookup
from irx.ir.program import Program
from irx.ir.types import KVType
from irx.ops.cache import KVArrays
from irx.passes.cache.budgets import curve_of, shares_of
from irx.pipeline.base import Report
from tests.cases.running import context, find_passes
from tests.passes.small_models import WORDS, decoder
from tests.passes.weights.calibrating import by_oracle as by_oracle_on

KERNELS = pytest.mark.skipif(missing() is not None, reason=str(missing()))
TARGETS = ["torch:cpu", pytest.param("cpu", marks=KERNELS)]
LENGTH, KEPT = 30, 9  # ceil(0.3 * 30)
LONG = 512
DENSE = 2 * 2 * 2 * 8 * 4  # bytes of a token: keys and values of 2 layers and 2 heads of 8 channels in float32
EVICT = "kv-evict{keep=0.3, sinks=2, window=4}"
SCORERS = [EVICT, *(EVICT.replace("{", f"{{scorer={name}, ") for name in ("h2o", "norm", "window"))]


def evicted(text: str, program: Program | None = None) -> tuple[Program, Report]:
    program = program or decoder(2)
    (one,) = find_passes(text)
    return program, one.run(program, context(program))


def ids(batch: int = 2, length: int = LENGTH) -> Any:
    return np.random.default_rng(1).integers(0, WORDS, (batch, length))


@cache
def compiled(target: str, text: str = EVICT) -> irx.Executable:
    program = decoder(2)
    program.sizes["S"], program.meta["max_length"] = Range(1, LONG), LONG
    return irx.compile(program, target=target, pipeline=f"default | {text}".removesuffix(" | "), strict=True)


def by_oracle(program: Program, tokens: Any, chunks: list[int]) -> tuple[Any, dict[str, KVArrays]]:
    """The logits of the last token of every chunk, and the states afterwards."""
    prefill, found, start = program.graphs["prefill"], [], 0
    states = {v.name: KVArrays.empty(v.type, len(tokens)) for v in prefill.inputs if isinstance(v.type, KVType)}
    for size in chunks:
        graph = program.graphs["decode" if size == 1 else "prefill"]
        pos = np.broadcast_to(np.arange(start, start + size), (len(tokens), size))
        given = {
            **states,
            "ids": tokens[:, start : start + size],
            "pos": pos,
            "rows": np.full((len(tokens), 1), size - 1),
        }
        names = [value.name for value in graph.inputs]
        made = evaluate(graph, {name: given[name] for name in names}, {}, program.weights)
        results = dict(zip(graph.output_names, made, strict=True))
        states = {name: results[name] for name in states}
        found.append(results["logits"])
        start += size
    return np.concatenate(found, axis=1), states


def in_session(made: irx.Executable, tokens: Any, chunks: list[int]) -> tuple[Any, Any]:
    session = made.session(len(tokens))
    parts = torch.from_numpy(tokens)[:, : sum(chunks)].split(chunks, dim=1)
    return torch.cat([session.append(part) for part in parts], dim=1), session


def test_h2o_by_hand() -> None:
    """Attention [1], [.8, .2], [.1, .3, .6] sums to 1.9, .5, .6: of two, key 2 is recent and key 0 heavy."""
    rows = np.array([[1, 1e-30, 1e-30], [0.8, 0.2, 1e-30], [0.1, 0.3, 0.6]])
    q = np.log(rows)[None, None]  # keys are unit vectors: a logit is an element of the query
    state = KVArrays(np.eye(3)[None, None], np.ones((1, 1, 3, 1)), np.arange(3)[None, None])
    pos = np.arange(3)[None]
    kept = lookup("kv_keep").reference(state, q, pos, by="attention", keep=2, half=0.5)
    np.testing.assert_array_equal(kept.positions, [[[0, 2]]])
    only_last = lookup("kv_keep").reference(state, q, pos, by="attention", keep=2, recent=1, rows=1)
    np.testing.assert_array_equal(only_last.positions, [[[1, 2]]])


@pytest.mark.parametrize("text", SCORERS)
def test_what_stays(text: str) -> None:
    """As many of every head as the budget says, protected ones among them, in the order of their positions."""
    program, report = evicted(text)
    assert len(report.sites) == 2
    _, states = by_oracle(program, ids(), [LENGTH])
    for state in states.values():
        assert state.positions.shape == (2, 2, KEPT)
        assert (np.diff(state.positions, axis=2) > 0).all(), "positions ascend"
        last = KEPT // 2 if "h2o" in text else 4
        for head in state.positions.reshape(-1, KEPT):
            assert {0, 1, *range(LENGTH - last, LENGTH)} <= set(head.tolist())
    window = states["kv0"].positions[0, 0].tolist()
    assert (window == [0, 1, *range(LENGTH - KEPT + 2, LENGTH)]) == ("scorer=window" in text)


def test_keeping_all_is_the_identity() -> None:
    program, report = evicted("kv-evict{keep=1.0}")
    assert "keep=1" in report.note
    assert all(node.op.name != "kv_keep" for node in program.graphs["prefill"].nodes)


def test_prompts_no_longer_than_the_budget_lose_nothing() -> None:
    exact = compiled("torch:cpu", "")
    for text in (EVICT, "kv-evict{capacity=40, sinks=2, window=4}"):
        length = 6 if text == EVICT else LENGTH
        tokens = ids(length=LENGTH + 2)
        found, session = in_session(compiled("torch:cpu", text), tokens, [length, 1, 1])
        assert torch.equal(found, in_session(exact, tokens, [length, 1, 1])[0]), text
        session.truncate(3)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("text", SCORERS[:2])
@pytest.mark.parametrize("chunks", [[26, 1, 1, 1, 1], [14, 1, 12, 1, 1, 1], [1, 1, 20, 5, 1, 2]], ids=str)
def test_decoding_sees_what_is_left(target: str, text: str, chunks: list[int]) -> None:
    """Prompts in one piece or in several, with steps between them: as the oracle, which compares positions."""
    program, _ = evicted(text)
    expected, _ = by_oracle(program, ids(), chunks)
    found, _ = in_session(compiled(target, text), ids(), chunks)
    assert np.abs(found.numpy() - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("target", TARGETS)
def test_padded_rows_are_the_rows_alone(target: str) -> None:
    """Each row keeps its own share of its own tokens."""
    made, tokens = compiled(target), torch.from_numpy(ids())
    mask = (torch.arange(24) >= torch.tensor([[0], [10]])).long()
    session = made.session(2)
    found = [session.append(tokens[:, :24], mask), *(session.append(tokens[:, i : i + 1]) for i in range(24, 28))]
    for row, start in ((0, 0), (1, 10)):
        alone = made.session(1)
        own = tokens[row : row + 1]
        wanted = [alone.append(own[:, start:24]), *(alone.append(own[:, i : i + 1]) for i in range(24, 28))]
        assert torch.allclose(torch.cat(found, 1)[row], torch.cat(wanted, 1)[0], atol=2e-5), row


@pytest.mark.parametrize("padding", [[0, 10], [7]], ids=str)
@pytest.mark.parametrize("text", SCORERS[:2])
def test_queries_one_by_one_choose_what_all_at_once_do(
    text: str, padding: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, tokens = compiled("torch:cpu", text), torch.from_numpy(ids(len(padding)))
    mask = (torch.arange(24) >= torch.tensor(padding)[:, None]).long()

    def found() -> torch.Tensor:
        session = made.session(len(padding))
        session.append(tokens[:, :24], mask)
        return session.append(tokens[:, 24:25])

    at_once = found()
    monkeypatch.setattr(eviction, "_LOGITS", {"cpu": 1})
    assert torch.allclose(found(), at_once, atol=1e-5)


@KERNELS
def test_decoding_is_left_to_kernels() -> None:
    graphs = compiled("cpu").graphs
    assert not graphs["decode"].fallbacks
    assert all("kv_keep" in node for node in graphs["prefill"].fallbacks)
    assert len(graphs["prefill"].fallbacks) == 2


@pytest.mark.parametrize("target", TARGETS)
def test_sessions_are_smaller_fork_and_say_how_far_back_they_go(target: str) -> None:
    tokens = np.tile(ids(1), 12)
    _, session = in_session(compiled(target), tokens, [300])
    assert session.memory() < 0.4 * DENSE * LONG, "a state of all 300 tokens has 512 slots"
    assert compiled(target).memory().cache >= session.memory()
    fork = session.fork()
    step = torch.from_numpy(tokens[:, :1])
    session.append(step)
    assert torch.equal(fork.append(step), (session.truncate(300), session.append(step))[1])
    with pytest.raises(TokensEvicted, match="truncate to 300 or more"):
        session.truncate(299)
    session.truncate(0)
    fresh, _ = in_session(compiled(target), tokens, [20])
    assert torch.allclose(session.append(torch.from_numpy(tokens[:, :20])), fresh, atol=1e-5)


def test_shares_have_the_mean_and_follow_the_attention() -> None:
    """A layer that looks at few keys needs fewer; shares grow with the mean."""
    flat, steep = curve_of(np.ones(100)), curve_of(0.8 ** np.arange(100.0))
    found = [shares_of([flat, steep, flat], mean) for mean in (0.1, 0.3, 0.6)]
    for shares, mean in zip(found, (0.1, 0.3, 0.6), strict=True):
        assert np.mean(shares) == pytest.approx(mean)
        assert shares[0] == shares[2] > shares[1]
    assert all(a <= b for few, more in pairwise(found) for a, b in zip(few, more, strict=True))


def test_prefix_budgets_share_out_what_uniform_ones_have() -> None:
    program = decoder(2)
    ctx = context(program)
    ctx.calibration = Calibration([{"ids": ids(1, 24)}], by_oracle_on)
    (one,) = find_passes("kv-evict{budget=prefix, keep=0.4, sinks=1, window=2}")
    assert len(one.run(program, ctx).sites) == 2
    kept = [node.attr("share") for node in program.graphs["prefill"].nodes if node.op.name == "kv_keep"]
    assert np.mean(kept) == pytest.approx(0.4, abs=1e-3)
    assert kept[0] != kept[1], "layers of different attention need different numbers of tokens"


def test_prefix_budgets_need_data() -> None:
    with pytest.raises(CalibrationNeeded, match="budget=prefix"):
        evicted("kv-evict{budget=prefix}")


def test_options_are_checked() -> None:
    for wrong in ("keep=0.0", "window=0", "pool=4", "capacity=10"):
        with pytest.raises(irx.errors.BadOption, match="but must be"):
            find_passes(f"kv-evict{{{wrong}}}")
