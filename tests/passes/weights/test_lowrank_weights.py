"""lowrank-weights: the best approximation of a rank, for the inputs that there are, where it saves bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import irx.ops  # noqa: F401  declares the ops that texts name
from irx.analysis.random_weights import bind_random_weights
from irx.analysis.reference import evaluate
from irx.errors import BadOption, CalibrationNeeded
from irx.ir.parser import parse
from irx.ir.program import Program
from irx.ir.verify import verify
from irx.passes.weights.lowrank_weights import leading
from irx.pipeline.base import Report
from tests.cases.running import context, find_passes
from tests.passes.weights.calibrating import ids, run_calibrated

GRAPH = """
graph @{name}(%ids: i64[B, 5]) -> (logits: f32[B, 5, 50]) {{
  %x = irx.embedding(%ids, $table)
  %h = irx.linear(%x, $up, $bias)
  %d = irx.linear(%h, $down)
  %y = irx.linear(%d, $head)
  return %y
}}
"""
TEXT = (
    """
size B in [1, 16]
weight $table : f32[50, 64]
weight $up : f32[128, 64]
weight $bias : f32[128]
weight $down : f32[64, 128]
weight $head : f32[50, 64]
"""
    + GRAPH.format(name="forward")
    + GRAPH.format(name="decode")
)
DATA = ids(2, 5, 50)


def model() -> Program:
    program = parse(TEXT)
    bind_random_weights(program.weights)
    return program


def run(options: str, program: Program) -> Report:
    (one,) = find_passes(f"lowrank-weights{{{options}}}")
    report = run_calibrated(one, program, DATA)
    verify(program)
    return report


def logits(program: Program, graph: str = "forward") -> Any:
    return evaluate(program.graphs[graph], DATA[0], {}, program.weights)[0]


def stored_bytes(program: Program) -> int:
    return sum(program.weights.array(weight).nbytes for weight in program.used_weights())


def test_bytes_fall_as_predicted_and_errors_fall_with_the_rank() -> None:
    errors, told = [], []
    for rank in (8, 16, 32, 40):
        program = model()
        before, original = stored_bytes(program), logits(program)
        report = run(f"rank={rank}", program)
        assert [site.graph for site in report.sites] == ["forward", "decode"] * 2
        assert stored_bytes(program) == before - 2 * 4 * (64 * 128 - rank * (64 + 128))
        errors.append(float(np.square(logits(program) - original).mean()))
        told.append(max(site.error or 0 for site in report.sites))
        np.testing.assert_array_equal(logits(program), logits(program, "decode"))
    assert errors == sorted(errors, reverse=True)
    assert told == sorted(told, reverse=True)
    assert errors[-1] > 0


def test_full_rank_would_save_nothing_and_is_refused() -> None:
    report = run("rank=1.0", model())
    assert report.sites == []
    assert sum("saves no bytes" in miss.reason for miss in report.near_misses) == 2


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
def test_full_rank_gives_the_matrix_and_less_what_the_decomposition_gives(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    array, rms = random.standard_normal(shape), np.exp(random.standard_normal(shape[1]))
    full, nothing = leading(array, rms, min(shape))
    np.testing.assert_allclose(full @ (full.T @ array), array, atol=1e-12)
    assert nothing == pytest.approx(0, abs=1e-7)
    left, values, right = np.linalg.svd(array * rms, full_matrices=False)
    for rank in (3, 11):
        basis, error = leading(array, rms, rank)
        best = (left[:, :rank] * values[:rank]) @ right[:rank] / rms
        np.testing.assert_allclose(basis @ (basis.T @ array), best, atol=1e-9)
        assert error == pytest.approx(np.sqrt(np.square(values[rank:]).sum() / np.square(values).sum()))


def test_a_matrix_of_that_rank_is_kept_to_the_rounding_of_floats() -> None:
    program = model()
    random = np.random.default_rng(1)
    for name, (rows, columns) in (("up", (128, 64)), ("down", (64, 128))):
        low = (random.standard_normal((rows, 5)) @ random.standard_normal((5, columns)) / 8).astype(np.float32)
        program.weights.bind(name, lambda low=low: low)  # type: ignore[misc]
    original = logits(program)
    report = run("rank=5", program)
    assert len(report.sites) == 4
    assert np.abs(logits(program) - original).max() < 1e-5 * np.abs(original).max()


def test_inputs_decide_what_is_kept() -> None:
    """A direction that inputs never take costs nothing."""
    array, rms = np.diag([5.0, 4.0, 3.0]), np.array([0.0, 1.0, 1.0])
    basis, error = leading(array, rms, 2)
    np.testing.assert_allclose(np.abs(basis @ basis.T), np.diag([0.0, 1.0, 1.0]), atol=1e-12)
    assert error == pytest.approx(0, abs=1e-9)


def test_shares_become_ranks_of_whole_blocks_so_that_factors_can_be_packed() -> None:
    program = model()
    report = run("rank=0.4", program)
    assert {site.what for site in report.sites} == {"rank 32 of 64"}
    (pack,) = find_passes("quantize-weights")
    assert {site.what for site in pack.run(program, context(program)).sites} == {"q8_0, 8.5 bits an element"}
    verify(program)


def test_it_asks_for_data() -> None:
    (one,) = find_passes("lowrank-weights{rank=8}")
    program = model()
    with pytest.raises(CalibrationNeeded, match="lowrank-weights"):
        one.run(program, context(program))


@pytest.mark.parametrize("rank", ["0", "-3", "1.5", "0.0", "most"])
def test_bad_ranks_are_named(rank: str) -> None:
    with pytest.raises(BadOption):
        find_passes(f"lowrank-weights{{rank={rank}}}")
