"""slice-ffn: which channels stay, what becomes smaller, and that all graphs change alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import irx.ops  # noqa: F401  declares the ops that texts name
from irx.analysis.random_weights import bind_random_weights
from irx.analysis.reference import evaluate
from irx.errors import BadOption, CalibrationNeeded
from irx.ir.equal import difference
from irx.ir.parser import parse
from irx.ir.printer import print_program
from irx.ir.program import Program
from irx.ir.verify import verify
from irx.passes.weights.importance import channel_scores, keep_ratios, kept_counts
from irx.passes.weights.refit import refitted
from irx.pipeline.base import Report
from tests.cases.running import context, find_passes
from tests.passes.weights.calibrating import ids, run_calibrated

WIDTH, COLUMNS = 96, 32
HEADER = """
size B in [1, 16]
weight $table : f32[50, 32]
weight $norm : f32[32]
weight $gate : f32[96, 32]
weight $up : f32[96, 32]
weight $bias : f32[96]
weight $down : f32[32, 96]
weight $both : f32[192, 32]
weight $back : f32[32, 96]
weight $head : f32[50, 32]
"""
GRAPH = """
graph @{name}(%ids: i64[B, 5]) -> (logits: f32[B, 5, 50]) {{
  %x = irx.embedding(%ids, $table)
  %n = irx.rms_norm(%x, $norm) {{eps=1e-5}}
  %g = irx.linear(%n, $gate)
  %u = irx.linear(%n, $up, $bias)
  %h = irx.swiglu(%g, %u)
  %d = irx.linear(%h, $down)
  %x1 = irx.add(%x, %d)
  %n1 = irx.rms_norm(%x1, $norm) {{eps=1e-5}}
  %b = irx.linear(%n1, $both)
  %g1 = irx.slice(%b) {{axis=2, start=0, stop=96}}
  %u1 = irx.slice(%b) {{axis=2, start=96, stop=192}}
  %s1 = irx.silu(%g1)
  %h1 = irx.mul(%s1, %u1)
  %d1 = irx.linear(%h1, $back)
  %x2 = irx.add(%x1, %d1)
  %y = irx.linear(%x2, $head)
  return %y
}}
"""
SLICED = """
  %x = irx.embedding(%ids, $table)
  %n = irx.rms_norm(%x, $norm) {eps=1e-5}
  %g = irx.linear(%n, $g)
  %u = irx.linear(%n, $u, $b)
  %h = irx.swiglu(%g, %u)
  %d = irx.linear(%h, $d)
  %x1 = irx.add(%x, %d)
  %n1 = irx.rms_norm(%x1, $norm) {eps=1e-5}
  %g1 = irx.linear(%n1, $g1)
  %s1 = irx.silu(%g1)
  %u1 = irx.linear(%n1, $u1)
  %h1 = irx.mul(%s1, %u1)
  %d1 = irx.linear(%h1, $d1)
  %x2 = irx.add(%x1, %d1)
  %y = irx.linear(%x2, $head)
  return %y
}
"""
TAKEN = """
weight $down.channels : i64[64]
weight $g : f32[64, 32] = irx.take($gate, $down.channels) {axis=0}
weight $u : f32[64, 32] = irx.take($up, $down.channels) {axis=0}
weight $b : f32[64] = irx.take($bias, $down.channels) {axis=0}
weight $d : f32[32, 64] = irx.take($down, $down.channels) {axis=1}
weight $back.channels : i64[64]
weight $bg : f32[96, 32] = irx.slice($both) {axis=0, start=0, stop=96}
weight $bu : f32[96, 32] = irx.slice($both) {axis=0, start=96, stop=192}
weight $g1 : f32[64, 32] = irx.take($bg, $back.channels) {axis=0}
weight $u1 : f32[64, 32] = irx.take($bu, $back.channels) {axis=0}
weight $d1 : f32[32, 64] = irx.take($back, $back.channels) {axis=1}
"""
DATA = ids(3, 5, 50)


def model() -> Program:
    program = parse(HEADER + GRAPH.format(name="forward") + GRAPH.format(name="decode"))
    bind_random_weights(program.weights)
    return program


def run(options: str, program: Program) -> Report:
    (one,) = find_passes(f"slice-ffn{{{options}}}")
    report = run_calibrated(one, program, DATA)
    verify(program)
    return report


def logits(program: Program, graph: str = "forward") -> Any:
    return evaluate(program.graphs[graph], DATA[0], {}, program.weights)[0]


def stored_bytes(program: Program) -> int:
    return sum(program.weights.array(weight).nbytes for weight in program.used_weights())


def test_all_graphs_read_the_same_slices() -> None:
    program = model()
    report = run("keep=0.667, multiple=16, ratios=uniform, refit=false", program)
    head = "(%ids: i64[B, 5]) -> (logits: f32[B, 5, 50]) {"
    expected = parse(HEADER + TAKEN + f"graph @forward{head}{SLICED}graph @decode{head}{SLICED}")
    found = difference(program, expected)
    assert found is None, f"{found}\n{print_program(program)}"
    assert [site.graph for site in report.sites] == ["forward", "decode"] * 2
    assert all(site.error is not None and 0 < site.error < 0.7 for site in report.sites)
    np.testing.assert_array_equal(logits(program), logits(program, "decode"))


@pytest.mark.parametrize(("keep", "kept"), [(0.5, 96), (0.667, 128), (0.834, 160)])
def test_bytes_fall_by_what_is_cut(keep: float, kept: int) -> None:
    program = model()
    before, original = stored_bytes(program), logits(program)
    run(f"keep={keep}, multiple=16", program)
    rows_of_a_channel = 3 * COLUMNS * 4
    used = {weight.name: weight.shape for weight in program.used_weights()}
    (bias,) = used.get("bias.kept", (WIDTH,))
    gone = 2 * WIDTH - kept
    assert stored_bytes(program) == before - gone * rows_of_a_channel - 4 * (WIDTH - int(str(bias)))
    error = np.abs(logits(program) - original).max() / np.abs(original).max()
    assert 0 < error < 1


def test_errors_fall_as_more_is_kept() -> None:
    errors = []
    for keep in (0.34, 0.667, 0.9):
        program = model()
        original = logits(program)
        run(f"keep={keep}, multiple=16, ratios=uniform", program)
        errors.append(np.abs(logits(program) - original).mean())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 1.5


def test_keeping_all_changes_nothing_and_asks_for_no_data() -> None:
    program = model()
    once = print_program(program)
    (one,) = find_passes("slice-ffn{keep=1.0}")
    report = one.run(program, context(program))
    assert print_program(program) == once
    assert {miss.reason for miss in report.near_misses} == {"all of its 96 channels are kept"}


def test_channels_that_are_never_active_go_first_and_nothing_is_lost() -> None:
    program = model()
    dead = np.arange(0, WIDTH, 3)
    for name, rows in (("up", dead), ("bias", dead), ("both", dead)):
        array = program.weights.array(program.weights[name]).copy()
        array[rows] = 0
        program.weights.bind(name, lambda array=array: array)  # type: ignore[misc]
    original = logits(program)
    report = run("keep=0.667, multiple=16, ratios=uniform, refit=false", program)
    assert all(site.error == pytest.approx(0, abs=1e-6) for site in report.sites)
    channels = program.weights.array(program.weights["down.channels"])
    assert not set(channels) & set(dead)
    np.testing.assert_allclose(logits(program), original, atol=1e-12)


def test_kept_channels_take_over_what_they_can() -> None:
    """A third of the channels are copies of others: without them nothing need be lost."""
    program = model()
    for name in ("gate", "up", "bias", "both"):
        array = program.weights.array(program.weights[name]).copy()
        array[1::3] = array[::3]
        program.weights.bind(name, lambda array=array: array)  # type: ignore[misc]
    original = logits(program)
    errors = {}
    for refit in ("true", "false"):
        sliced = program.clone()
        run(f"keep=0.667, multiple=16, ratios=uniform, refit={refit}", sliced)
        errors[refit] = np.square(logits(sliced) - original).mean()
    assert errors["true"] < 0.5 * errors["false"]


def test_a_refit_is_the_least_squares_solution_pulled_towards_the_old_columns() -> None:
    random = np.random.default_rng(0)
    h, down = random.standard_normal((500, 8)) @ random.standard_normal((8, 8)), random.standard_normal((3, 8))
    kept, moments = np.array([0, 2, 3, 6]), h.T @ h / 500
    best = np.linalg.lstsq(h[:, kept], h @ down.T, rcond=None)[0].T
    np.testing.assert_allclose(refitted(down, moments, kept, 1e-12), best, rtol=1e-6)
    np.testing.assert_allclose(refitted(down, moments, kept, 1e12), down[:, kept], rtol=1e-6)


def test_networks_get_the_shares_that_are_listed() -> None:
    program = model()
    report = run("multiple=16, ratios=[1.0, 0.5]", program)
    assert [site.what for site in report.sites] == ["48 of 96 channels"] * 2
    assert [miss.reason for miss in report.near_misses] == ["all of its 96 channels are kept"]
    with pytest.raises(BadOption, match="3 ratios are given, but there are 2 networks"):
        run("ratios=[1.0, 0.5, 1.0]", model())


def test_packed_matrices_stay_packed() -> None:
    program = model()
    (pack,) = find_passes("quantize-weights{skip=[head, embed]}")
    pack.run(program, context(program))
    before, original = stored_bytes(program), logits(program)
    report = run("keep=0.667, multiple=32, ratios=uniform", program)
    assert len(report.sites) == 4
    assert {w.dtype for w in program.used_weights() if len(w.shape) == 2 and "kept" in w.name} == {"q8_0"}
    assert stored_bytes(program) == before - 2 * 32 * 3 * COLUMNS * 34 // 32 - 32 * 4
    error = np.abs(logits(program) - original).max() / np.abs(original).max()
    assert error < 1
    program = model()
    pack.run(program, context(program))
    report = run("keep=0.5, multiple=16, ratios=uniform", program)
    assert {miss.reason for miss in report.near_misses} == {"48 channels are no whole blocks of 32 of q8_0"}


def test_it_asks_for_data() -> None:
    (one,) = find_passes("slice-ffn{keep=0.5, multiple=16}")
    program = model()
    with pytest.raises(CalibrationNeeded, match="slice-ffn"):
        one.run(program, context(program))


def test_scores_are_activations_times_shares_of_rows() -> None:
    rms, down, up = np.array([1.0, 2.0]), np.array([[3.0, -1.0]]), np.array([[1.0], [-3.0]])
    # down * rms = 3, 2: shares 0.6 and 0.4; up: 0.25 and 0.75
    np.testing.assert_allclose(channel_scores(rms, down, [up]), [0.85, 2 * 1.15])


def test_ratios_meet_their_mean_under_the_cap_and_follow_importance() -> None:
    ratios = keep_ratios([0.05, 0.1, 0.4], 0.8)
    assert np.mean(ratios) == pytest.approx(0.8)
    assert ratios == sorted(ratios)
    assert ratios[2] < 1
    capped = keep_ratios([0.0, 0.0, 0.9], 0.9)
    assert np.mean(capped) == pytest.approx(0.9)
    assert capped[2] == 1.0
    np.testing.assert_allclose(keep_ratios([0.1, 0.3], 1.0), [1.0, 1.0])


def test_counts_are_multiples_whose_sum_is_the_target() -> None:
    assert kept_counts([0.8] * 5, [1536] * 5, 128) == [1280, 1280, 1280, 1152, 1152]
    counts = kept_counts([0.8] * 5, [1536] * 5, 128)
    assert sum(counts) == 48 * 128
    assert all(count % 128 == 0 for count in counts)
    assert kept_counts([1.0, 0.01], [100, 100], 128) == [100, 100]
    assert kept_counts([1.0, 0.01], [200, 200], 64) == [200, 64]


@pytest.mark.parametrize("options", ["keep=0", "keep=1.5", "multiple=0", "ratios=[0.5, 0.0]", "ratios=best"])
def test_bad_options_are_named(options: str) -> None:
    with pytest.raises(BadOption):
        find_passes(f"slice-ffn{{{options}}}")
