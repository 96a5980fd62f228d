"""Quality figures against formulas written out, and against what must not depend on how data are streamed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import irx.analysis.quality as quality
from irx.analysis.calibration import Inputs
from irx.analysis.data import Data
from irx.analysis.quality import HeldOut, NextTokens, Predictions
from irx.analysis.reference import evaluate
from irx.ir.opdef import Array
from irx.ir.program import Program
from tests.analysis.test_data import encoder, language

TABLE = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
IDS = np.random.default_rng(1).integers(0, 50, (6, 12))


def bound(program: Program, table: Array = TABLE) -> Program:
    program.weights.bind("table", lambda: table)
    return program


class Prepare:
    """Runs programs on the oracle, and counts the batches."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, program: Program) -> Any:
        (graph,) = program.graphs.values()

        def run(inputs: Inputs) -> list[Array]:
            self.runs += 1
            return [np.asarray(y, np.float32) for y in evaluate(graph, inputs, {}, program.weights)]

        return run


def held_out(rows: int, size: float | None = None, causal: bool = True) -> Data:
    batches = tuple({"ids": IDS[i : i + rows]} for i in range(0, len(IDS), rows))
    return Data(batches, batches, "ids", None, causal, size)


def logits(table: Array) -> torch.Tensor:
    x = torch.from_numpy(table)
    return x[torch.from_numpy(IDS)] @ x.T


def test_figures_are_what_their_formulas_say() -> None:
    changed = TABLE + 0.05 * np.random.default_rng(2).standard_normal(TABLE.shape).astype(np.float32)
    judge = HeldOut(bound(language()), held_out(2, 4.0), Prepare())
    found = judge.figures(bound(language(), changed))
    p, q = (logits(table)[:, :-1].reshape(-1, 50).log_softmax(-1) for table in (TABLE, changed))
    targets = torch.from_numpy(IDS[:, 1:].reshape(-1))
    old, new = (float(-x[torch.arange(len(x)), targets].mean()) for x in (p, q))
    assert found["kl"] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=2e-2)
    assert found["top1"] == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).float().mean()))
    assert found["ppl_ratio"] == pytest.approx(math.exp(new - old), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(new / math.log(2) / 4, rel=1e-5)
    assert found["bits_per_byte_before"] == pytest.approx(old / math.log(2) / 4, rel=1e-5)
    assert 0 < found["kl"] < 0.1, "a change that the test can see"


def test_an_equal_program_differs_by_nothing() -> None:
    found = HeldOut(bound(language()), held_out(2), Prepare()).figures(bound(language()))
    assert found == {"kl": 0.0, "top1": 1.0, "ppl_ratio": 1.0}


def test_figures_do_not_depend_on_how_data_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = bound(language(), TABLE * 1.1)
    whole = HeldOut(bound(language()), held_out(6), Prepare()).figures(changed)
    monkeypatch.setattr(quality, "ROWS", 5)
    monkeypatch.setattr(quality, "KEPT_BYTES", 0)
    pieces = HeldOut(bound(language()), held_out(1), Prepare()).figures(changed)
    assert pieces == pytest.approx(whole, rel=1e-6)


def test_the_original_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = Prepare()
    judge = HeldOut(bound(language()), held_out(2), prepare)
    first = judge.figures(bound(language(), TABLE * 1.1))
    assert prepare.runs == 6
    assert judge.figures(bound(language(), TABLE * 1.1)) == first
    assert prepare.runs == 9
    monkeypatch.setattr(quality, "KEPT_BYTES", 1)
    few = HeldOut(bound(language()), held_out(2), prepare)
    assert few.figures(bound(language(), TABLE * 1.1)) == first
    assert few.figures(bound(language(), TABLE * 1.1)) == first
    assert len(few.kept) == 1, "one batch fills the limit, the others are computed again"


def test_impossible_tokens_are_no_infinity() -> None:
    sums = NextTokens()
    old = Predictions.of(torch.tensor([[0.0, -math.inf, 1.0]]), torch.tensor([0]))
    old.compare(Predictions.of(torch.tensor([[0.0, -math.inf, 1.5]]), torch.tensor([0])), sums)
    assert 0 < sums.figures()["kl"] < 1


def test_masked_tokens_do_not_count() -> None:
    ids = np.array([[1, 2, 3, 0], [4, 5, 6, 7]])
    batch = {"ids": ids, "mask": np.array([[1, 1, 1, 0], [1, 1, 1, 1]])}
    original = bound(encoder())
    changed = bound(encoder(), np.concatenate([TABLE[:1] + 9, TABLE[1:]]))
    judge = HeldOut(original, Data((batch,), (batch,), "ids", "mask"), Prepare())
    assert judge.figures(changed)["cosine"] == pytest.approx(1.0), "only the hidden token changed"
    assert judge.figures(bound(encoder(), TABLE[::-1].copy()))["cosine"] < 0.9
    unmasked = HeldOut(original, Data((batch,), (batch,), "ids"), Prepare())
    assert unmasked.figures(changed)["cosine"] < 0.99


def test_a_measure_of_the_users_own_sees_the_model() -> None:
    judge = HeldOut(bound(language()), held_out(2), Prepare())

    def largest(model: Any) -> float:
        return float(model(ids=torch.from_numpy(IDS))["logits"].max())

    assert judge.own(largest, bound(language())) == pytest.approx(float(logits(TABLE).max()), rel=1e-6)
