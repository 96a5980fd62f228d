"""repair-output: the least squares are right, unchanged units keep their weights, and held-out error falls."""

from __future__ import annotations

import numpy as np
import pytest

from irx.errors import CalibrationNeeded
from irx.ir.program import Program
from irx.ir.verify import verify
from irx.passes.attention.least_squares import Moments
from irx.passes.attention.repair_output import RepairOutput, storage
from irx.pipeline.base import Report
from irx.pipeline.runner import run as run_pipeline
from tests.cases.running import find_passes
from tests.passes.attention.layers import applied, calibration, layered, prepared, tokens
from tests.passes.normalize.tiny import run, stepwise

SHARE = "share-attention{leader=previous, ends=1, layers=2}"
DATA = calibration(batches=6, rows=4, length=16)


def repaired(program: Program, captured: Program, **options: str) -> Report:
    return RepairOutput(**options).run(program, prepared(program, DATA, captured))  # type: ignore[arg-type]


def off(program: Program, captured: Program) -> float:
    """How far the logits of tokens that no fit has seen are off."""
    ids = tokens(8, 16, seed=99)
    logits, wanted = (run(one, "forward", {"ids": ids})["logits"] for one in (program, captured))
    return float(np.square(logits - wanted).mean() / np.square(wanted).mean())


def test_moments_solve_least_squares() -> None:
    generator = np.random.default_rng(0)
    x, true = generator.standard_normal((50, 6)), generator.standard_normal((3, 6))
    wanted = x @ true.T + 0.1 * generator.standard_normal((50, 3))
    parts = [Moments(6, 3), Moments(6, 3)]
    parts[0].add(x[:20], wanted[:20])
    parts[0].add(x[20:30], wanted[20:30])
    parts[1].add(x[30:], wanted[30:])
    sums = parts[0] + parts[1]
    expected = np.linalg.lstsq(x, wanted, rcond=None)[0].T
    np.testing.assert_allclose(sums.solution(0.0), expected, atol=1e-10)
    assert sums.left(expected) == pytest.approx(np.square(x @ expected.T - wanted).sum())
    assert sums.left(np.zeros((3, 6))) == pytest.approx(np.square(wanted).sum())
    assert np.abs(sums.solution(1e6)).max() < 1e-4 * np.abs(expected).max()


def test_moments_of_nothing_change_nothing() -> None:
    sums = Moments(2, 3)
    sums.add(np.zeros((4, 2)), np.ones((4, 3)))
    assert not sums.solution(0.1).any() and sums.left(sums.solution(0.1)) == 12


def test_unchanged_units_keep_their_weights() -> None:
    captured = layered(4)
    program = captured.clone()
    report = repaired(program, captured)
    assert not report.sites and report.note == "no unit was changed"
    report = repaired(program, captured, units="all")
    assert not report.sites and len(report.near_misses) == 8
    assert all(miss.reason.startswith("no change does better") for miss in report.near_misses)


def test_only_the_changed_unit_is_fitted() -> None:
    captured = layered(4)
    program, _ = applied(captured, SHARE)
    report = repaired(program, captured)
    verify(program)
    assert [site.graph for site in report.sites] == ["forward", "prefill", "decode"]
    new = [entry.weight.name for entry in program.weights if entry.weight.name not in captured.weights]
    assert new == ["o2.repaired"]
    assert all(weight.name != "o2" for weight in program.used_weights())
    assert report.error is not None and 0 < report.error < 1


def test_repair_brings_unseen_tokens_nearer_to_the_original() -> None:
    captured = layered(4)
    program, _ = applied(captured, SHARE)
    before = off(program, captured)
    repaired(program, captured)
    assert off(program, captured) < 0.8 * before


def test_repaired_graphs_stay_one_function() -> None:
    captured = layered(4)
    program, _ = applied(captured, SHARE)
    repaired(program, captured, units="all")
    ids = tokens(2, 8)
    expected = run(program, "forward", {"ids": ids})["logits"]
    np.testing.assert_allclose(stepwise(program, ids, [6, 1, 1]), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_a_unit_behind_a_dropped_one_takes_over_what_it_did() -> None:
    captured = layered(4)
    program, report = applied(captured, "skip-layers{policy=list, layers=2, unit=mlp}")
    assert report.sites
    before = off(program, captured)
    report = repaired(program, captured)
    assert {site.loc.module for site in report.sites if site.graph == "forward"} and off(program, captured) < before


def test_a_weight_with_other_readers_stays() -> None:
    captured = layered(4)
    forward = captured.graphs["forward"]
    linear = next(n for n in forward.nodes if n.op.name == "linear" and n.inputs[1] is captured.weights["o2"])
    forward.set_outputs({"logits": forward.outputs[0], "more": forward.add("neg", [linear.inputs[1]]).output})
    program, _ = applied(captured, SHARE)
    report = repaired(program, captured)
    assert not report.sites and report.near_misses[0].reason == "neg reads the weight as well"


def test_the_pipeline_hands_over_the_program_before_the_first_lossy_pass() -> None:
    program = layered(4)
    ctx = prepared(program, DATA)
    result, ledger = run_pipeline(find_passes(f"{SHARE} | repair-output"), [], program, ctx, strict=True)
    assert [row.name for row in ledger.rows] == ["share-attention", "repair-output"]
    assert ledger.rows[1].decision == "kept" and "o2.repaired" in result.weights
    _, ledger = run_pipeline(find_passes("repair-output"), [], program, ctx, strict=True)
    assert "no lossy pass before it" in ledger.rows[0].reason


def test_it_needs_data() -> None:
    program = layered(4)
    with pytest.raises(CalibrationNeeded):
        RepairOutput().run(program, prepared(program, captured=program.clone()))


def test_a_packed_weight_stays_packed() -> None:
    captured, _ = applied(layered(4), "quantize-weights{group=16}")
    program, _ = applied(captured, SHARE)
    before = off(program, captured)
    report = repaired(program, captured)
    verify(program)
    assert len(report.sites) == 3 and off(program, captured) < 0.8 * before
    (weight,) = (weight for weight in program.used_weights() if weight.name.endswith(".repaired"))
    assert weight.dtype == "i8g16"


def test_formats_that_are_only_read_give_way() -> None:
    assert [storage(dtype) for dtype in ("f32", "bf16", "q4_1", "q4_k")] == ["f32", "bf16", "q4_1", "q8_0"]
