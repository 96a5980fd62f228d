"""`irx.compile` with a budget and no lossy pass: they are searched for, on a small language model of random weights."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import irx
from irx.errors import UnsupportedArgument
from irx.ledger import KEPT
from irx.pipeline.search import levels
from irx.pipeline.search.levels import Unit
from tests.api.test_budget import divergence, model

__all__ = ["model"]  # a fixture of the other file
IDS = [torch.from_numpy(np.random.default_rng(0).integers(0, 96, 64))]
UNITS = (
    Unit("depth", ("skip-layers{policy=tail, keep=N-1}",)),
    Unit("weights", ("quantize-weights{bits=8, skip=none}", "quantize-weights{bits=4, skip=none}")),
)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few levels, none of which needs decoding: what the table holds is tested elsewhere."""
    monkeypatch.setattr(levels.units_of, "__defaults__", (UNITS,))


def compiled(model: Any, budget: irx.Budget) -> irx.Executable:
    return irx.compile(model, target="torch", pipeline="none", data=IDS, budget=budget, search=irx.Search(minutes=10))


def test_the_best_inside_the_budget_is_compiled(model: Any) -> None:
    found = compiled(model, irx.Budget(kl=0.05))
    lossy = [row for row in found.ledger().rows if row.effect == "lossy"]
    assert lossy and {(row.name, row.decision) for row in lossy} == {("quantize-weights", KEPT)}
    assert "quantize-weights{" in found.pipeline
    notes = "\n".join(found.ledger().notes)
    assert "search: chosen: quantize-weights{" in notes
    assert "search: on the front: " in notes
    assert "times are predicted from bytes and operations" in notes
    with torch.no_grad():
        assert 0 < divergence(model, found, IDS[0].reshape(2, 32)[:1]) <= 0.05


def test_more_is_done_under_a_wider_budget(model: Any) -> None:
    found = compiled(model, irx.Budget(kl=50.0))
    assert "skip-layers{" in found.pipeline and "bits=4" in found.pipeline, found.ledger().notes


def test_what_was_measured_of_a_module_is_known_again(model: Any) -> None:
    compiled(model, irx.Budget(kl=0.05))
    again = compiled(model, irx.Budget(kl=0.05)).ledger().notes
    assert any("candidates were known from an earlier search" in note for note in again)
    with torch.no_grad():
        changed = copy.deepcopy(model)
        next(changed.parameters()).mul_(1.01)
    other = compiled(changed, irx.Budget(kl=0.05)).ledger().notes
    assert not any("known from an earlier search" in note for note in other), "its weights are others"


def test_a_budget_of_zero_gives_the_exact_program(model: Any) -> None:
    found = compiled(model, irx.Budget(kl=0))
    assert found.program == irx.compile(model, target="torch", pipeline="none").program
    assert "search: chosen: nothing lossy" in found.ledger().notes


def test_arguments_that_do_not_go_together(model: Any) -> None:
    with pytest.raises(UnsupportedArgument, match="without a budget"):
        irx.compile(model, target="torch", search=irx.Search())
    with pytest.raises(UnsupportedArgument, match="no Search"):
        irx.compile(model, target="torch", search=5)  # type: ignore[arg-type]
