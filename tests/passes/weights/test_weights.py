"""Passes on weights: what the schemes promise of errors and bytes, one copy of shared tables, options."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import irx.ops  # noqa: F401  declares the ops that texts name
from irx.analysis.random_weights import bind_random_weights
from irx.analysis.reference import evaluate
from irx.errors import BadOption
from irx.ir.blocks import FORMATS, unpack
from irx.ir.parser import parse
from irx.ir.printer import print_program
from irx.ir.program import Program
from irx.ir.verify import verify
from irx.passes import passes
from irx.passes.weights.grouping import finest_needed, fitting
from irx.pipeline.base import Pass, Report
from irx.pipeline.pipeline import Pipeline
from irx.rewrite.report import Fuel
from tests.cases.running import context, find_passes

TIED = """
size B in [1, 16]
weight $table : f32[96, {columns}]
weight $up : f32[{columns}, {columns}]
graph @forward(%ids: i64[B, 5]) -> (logits: f32[B, 5, 96]) {{
  %e = irx.embedding(%ids, $table)
  %h = irx.linear(%e, $up)
  %y = irx.linear(%h, $table)
  return %y
}}
"""


def tied(columns: int = 64) -> Program:
    program = parse(TIED.format(columns=columns))
    bind_random_weights(program.weights)
    return program


def run(text: str, program: Program) -> Report:
    (one,) = find_passes(text)
    report = one.run(program, context(program))
    verify(program)
    return report


def forward(program: Program) -> Any:
    ids = np.arange(10).reshape(2, 5)
    return evaluate(program.graphs["forward"], {"ids": ids}, {}, program.weights)[0]


def stored_bytes(program: Program) -> int:
    """Bytes of what the graphs read."""
    return sum(program.weights.array(weight).nbytes for weight in program.used_weights())


def changed(program: Program) -> dict[str, Any]:
    """The weights that the graphs read now, with the values they stand for."""
    found = {}
    for weight in program.used_weights():
        array = program.weights.array(weight)
        found[weight.name] = unpack(array, weight.dtype) if weight.dtype in FORMATS else array.astype(np.float32)
    return found


@pytest.mark.parametrize(
    ("options", "bits", "largest"),
    [("", 8.5, 0.02), ("{bits=8, group=64}", 8.25, 0.02), ("{bits=4, skip=none}", 4.5, 0.4),
     ("{bits=4, group=64, skip=[]}", 4.25, 0.4), ("{bits=4, symmetric=false, skip=none}", 5.0, 0.4),
     ("{bits=5, skip=none}", 5.5, 0.2), ("{bits=5, symmetric=false, skip=none}", 6.0, 0.2)],
)  # fmt: skip
def test_bytes_are_those_of_the_format_and_errors_are_small(options: str, bits: float, largest: float) -> None:
    program = tied()
    before, elements = forward(program), stored_bytes(program) / 4
    report = run(f"quantize-weights{options}", program)
    assert stored_bytes(program) == elements * bits / 8
    error = np.abs(forward(program) - before).max() / np.abs(before).max()
    assert 0 < error < largest
    assert all(site.error is not None and 0 < site.error < largest for site in report.sites)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.sampled_from([32, 48, 64, 96, 256]), st.sampled_from([4, 8]), st.sampled_from([16, 32, 64, 128, 256]))
def test_errors_of_weights_are_within_the_bound_of_their_groups(columns: int, bits: int, group: int) -> None:
    program = tied(columns)
    weights = {weight.name: program.weights.array(weight) for weight in program.used_weights()}
    run(f"quantize-weights{{bits={bits}, group={group}, skip=none}}", program)
    after = changed(program)
    assert len(after) == 2
    for name, array in weights.items():
        ((packed, values),) = [(k, v) for k, v in after.items() if k.startswith(name)]
        size = FORMATS[packed.rpartition(".")[2]].elements
        assert size == fitting(columns, group, bits)[0]
        extent = np.repeat(np.abs(array.reshape(-1, size)).max(1), size).reshape(array.shape)
        # Half a step in 8 bits; in 4 bits a step of an eighth, of which the far end may be off by a whole one.
        bound = extent / 127 * 0.51 if bits == 8 else extent / 8 * 1.01
        assert (np.abs(values - array) <= bound).all()


@pytest.mark.parametrize("text", ["quantize-weights", "quantize-weights{bits=4, skip=none}", "cast-weights"])
def test_a_table_that_is_embedding_and_head_is_stored_once(text: str) -> None:
    program = tied()
    run(text, program)
    names = [weight.name for weight in program.used_weights()]
    assert len(names) == 2
    assert sum(name.startswith("table") for name in names) == 1


def test_one_part_that_is_skipped_keeps_the_shared_table() -> None:
    for skip in ("head", "embed", "[head, embed]", "head,embed"):
        program = tied()
        report = run(f"quantize-weights{{skip={skip}}}", program)
        assert sorted(weight.name for weight in program.used_weights()) == ["table", "up.q8_0"]
        (miss,) = report.near_misses
        assert "which skip keeps" in miss.reason


@pytest.mark.parametrize(
    "text", ["quantize-weights", "cast-weights", "cast-weights{dtype=f16}", "cast-activations{to=a8}"]
)
def test_a_second_run_changes_nothing_and_says_why(text: str) -> None:
    program = tied()
    assert run(text, program).sites
    once = print_program(program)
    report = run(text, program)
    assert report.sites == []
    assert report.near_misses
    assert print_program(program) == once


def test_programs_print_and_parse_with_their_derivations() -> None:
    program = tied()
    run("quantize-weights{bits=4, group=64, skip=none}", program)
    text = print_program(program)
    assert 'irx.quantize($up) {format="i4g64"}' in text
    assert print_program(parse(text)) == text


def test_without_arrays_weights_are_packed_all_the_same_but_not_looked_at() -> None:
    program = parse(TIED.format(columns=64))
    report = run("quantize-weights", program)
    assert [site.error for site in report.sites] == [None] * 3
    report = run("quantize-weights{scheme=fine}", parse(TIED.format(columns=64)))
    assert report.sites == []
    assert {miss.reason for miss in report.near_misses} == {"fine looks at the weight, which has no array"}


def test_five_bits_have_groups_of_32_alone() -> None:
    program = tied(48)
    report = run("quantize-weights{bits=5, skip=none}", program)
    assert report.sites == []
    assert {miss.reason for miss in report.near_misses} == {"rows of 48 elements are no whole groups of 32 or more"}
    program = tied(64)
    run('quantize-weights{bits=4, group=16, skip=none, mixed=["up=5"]}', program)
    assert sorted(weight.dtype for weight in program.used_weights()) == ["i4g16", "q5_0"]


def test_fuel_ends_between_weights() -> None:
    program = tied()
    (one,) = find_passes("quantize-weights")
    ctx = context(program)
    ctx.fuel = Fuel(1)
    assert {site.what for site in one.run(program, ctx).sites} == {"q8_0, 8.5 bits an element"}
    verify(program)
    assert sum(weight.dtype == "q8_0" for weight in program.used_weights()) == 1


def test_only_matrices_with_outliers_get_fine_groups() -> None:
    random = np.random.default_rng(0)
    plain = random.standard_normal((64, 512)).astype(np.float32)
    assert finest_needed(plain, [256, 128, 64]) == 256
    spiky = plain.copy()
    spiky[:, ::128] *= 40
    assert finest_needed(spiky, [256, 128, 64]) == 64
    few = plain.copy()
    few[:, ::256] *= 40
    few[:, 100::512] *= 0  # one outlier in every 256: finer groups confine it
    assert finest_needed(few, [256, 128, 64]) == 64
    assert finest_needed(spiky, [64]) == 64


def test_fine_chooses_for_every_matrix_and_is_at_least_as_fine_as_asked() -> None:
    program = tied(256)
    array = program.weights.array(program.weights["up"]).copy()
    array[:, ::64] *= 50
    program.weights.bind("up", lambda: array)
    run("quantize-weights{scheme=fine, bits=4, group=64, skip=none}", program)
    assert {weight.dtype for weight in program.used_weights()} == {"i4g256", "i4g64"}


def test_linears_of_one_value_share_its_rounding() -> None:
    text = """
    size B in [1, 16]
    weight $a : f32[32, 64]
    weight $b : f32[32, 64]
    graph @forward(%x: f32[B, 64]) -> (a: f32[B, 32], b: f32[B, 32]) {
      %a = irx.linear(%x, $a)
      %b = irx.linear(%x, $b)
      return %a, %b
    }
    """
    for options, op in (("{to=a8}", "round_activations"), ("", "cast")):
        program = parse(text)
        bind_random_weights(program.weights)
        report = run(f"cast-activations{options}", program)
        assert len(report.sites) == 2
        assert all(site.error is not None and 0 < site.error < 0.02 for site in report.sites)
        rounding = [node for node in program.graphs["forward"].nodes if node.op.name == op]
        assert len(rounding) == (1 if op == "round_activations" else 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quantize-weights{bits=3}", "bits is 3, but must be 4, 5 or 8"),
        ("quantize-weights{bits=5, group=64}", "group is 64, but must be one of 32"),
        ("quantize-weights{bits=5, scheme=fine}", "bits=5 are for scheme=rtn"),
        ("quantize-weights{bits=5, mean-bits=6}", "bits=5 and mean-bits exclude each other"),
        ("quantize-weights{group=48}", "group is 48, but must be one of 16, 32, 64, 128, 256"),
        ("quantize-weights{symmetric=false}", "symmetric=false is for bits=4 and 5"),
        ("quantize-weights{bits=4, scheme=fine, symmetric=false}", "symmetric=false and bits=5 are for scheme=rtn"),
        ("quantize-weights{scheme=fin}", "did you mean 'fine'?"),
        ("quantize-weights{skip=tail}", "option 'skip' of pass 'quantize-weights' must be"),
        ("quantize-weights{skip=[head, tail]}", "option 'skip' of pass 'quantize-weights' must be"),
        ("cast-weights{dtype=f32}", 'must be one of "bf16", "f16", not "f32"'),
        ("cast-activations{to=a4}", 'must be one of "bf16", "a8", not "a4"'),
        ("cast-activations{to=a8, group=0}", "group is 0, but must be positive"),
    ],
)
def test_bad_options_are_named(text: str, message: str) -> None:
    with pytest.raises(BadOption) as caught:
        find_passes(text)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["quantize-weights", "cast-weights", "cast-activations"])
def test_lossy_passes_state_their_measure_and_extend_the_default_pipeline(name: str) -> None:
    kind: type[Pass] = passes().load(name)
    assert kind.effect.name == "LOSSY"
    assert kind.measure
    found = Pipeline.parse(f"default | {name}", passes())
    stages = [one.stage for one in found.passes]
    assert name in str(found)
    assert stages == sorted(stages)
    assert name not in str(Pipeline.parse("default", passes()))
