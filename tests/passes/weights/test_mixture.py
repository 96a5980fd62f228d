"""Bits for every matrix of its own: by name, and by what they cost on the user's data."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

import irx.ops  # noqa: F401  declares the ops that texts name
from irx.analysis.random_weights import bind_random_weights
from irx.errors import BadOption, CalibrationNeeded
from irx.ir.blocks import unpack
from irx.ir.packing import pack
from irx.ir.parser import parse
from irx.ir.program import Program
from irx.passes import passes
from irx.passes.weights.mixture import Levels, finest, output_error
from irx.pipeline.pipeline import Pipeline
from tests.cases.running import context, find_passes
from tests.passes.weights.calibrating import ids, run_calibrated

TEXT = """
size B in [1, 16]
weight $table : f32[50, 64]
weight $a : f32[128, 64]
weight $b : f32[64, 128]
weight $c : f32[64, 64]
weight $head : f32[50, 64]
graph @forward(%ids: i64[B, 5]) -> (logits: f32[B, 5, 50]) {
  %x = irx.embedding(%ids, $table)
  %h = irx.linear(%x, $a)
  %d = irx.linear(%h, $b)
  %e = irx.linear(%d, $c)
  %y = irx.linear(%e, $head)
  return %y
}
"""


def model() -> Program:
    program = parse(TEXT)
    bind_random_weights(program.weights)
    return program


def formats(options: str, program: Program) -> dict[str, str]:
    (one,) = find_passes(f"quantize-weights{{{options}}}")
    run_calibrated(one, program, ids(2, 5, 50))
    return {weight.name.partition(".")[0]: weight.dtype for weight in program.used_weights()}


def bits(found: dict[str, str]) -> float:
    sizes = {"a": 8192, "b": 8192, "c": 4096}
    return sum(size * (4.5 if found[name] == "q4_0" else 8.5) for name, size in sizes.items()) / sum(sizes.values())


@pytest.mark.parametrize(("mean", "expected"), [(4.5, 4.5), (5.3, 5.3), (7.0, 6.9), (8.5, 8.5)])
def test_the_mean_is_met_from_below(mean: float, expected: float) -> None:
    found = formats(f"mean-bits={mean}", model())
    assert found["table"] == found["head"] == "f32"
    assert bits(found) == pytest.approx(expected)


def test_the_matrix_that_needs_them_gets_the_bits() -> None:
    program = model()
    quiet, spiky = (program.weights.array(program.weights[name]).copy() for name in ("a", "b"))
    quiet[::32] *= 0.001  # channels that are hardly there ...
    spiky[:, ::32] *= 60  # ... take the range of every group: four bits lose the rest
    program.weights.bind("a", lambda: quiet)
    program.weights.bind("b", lambda: spiky)
    assert formats("mean-bits=6.2", program) | {"table": "", "head": ""} == {
        "table": "", "a": "q4_0", "b": "q8_0", "c": "q4_0", "head": "",
    }  # fmt: skip


def test_a_stated_matrix_is_not_chosen_for() -> None:
    found = formats('mean-bits=4.5, mixed=["c=8", "a=16", "head=4"]', model())
    assert found == {"table": "f32", "a": "f32", "b": "q4_0", "c": "q8_0", "head": "q4_0"}


def test_choosing_needs_data_and_stating_does_not() -> None:
    program = model()
    with pytest.raises(CalibrationNeeded, match="quantize-weights with mean-bits"):
        find_passes("quantize-weights{mean-bits=6.0}")[0].run(program, context(program))
    assert find_passes('quantize-weights{mixed=["a=4"]}')[0].run(program, context(program)).sites


def test_the_text_of_a_mixture_parses_back() -> None:
    text = 'quantize-weights{bits=4, mixed=["*.up.weight=8", "model.layers.3.*=16"]}'
    assert str(Pipeline.parse(text, passes())) == text
    assert str(Pipeline.parse("quantize-weights{mean-bits=6.5}", passes())) == "quantize-weights{mean-bits=6.5}"


def test_the_choice_is_never_worse_than_one_format_and_near_the_best() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        levels = {
            str(i): Levels(1 << int(random.integers(10, 13)), (4.5, 8.5), (float(e), float(e) / 200))
            for i, e in enumerate(np.exp(random.standard_normal(6)))
        }
        total = sum(one.elements for one in levels.values())
        chosen = finest(levels, 6.5)
        assert size(levels, chosen) <= 6.5 * total
        best = min(
            cost(levels, picked)
            for flags in product((0, 1), repeat=6)
            if size(levels, picked := {n for n, flag in zip(levels, flags, strict=True) if flag}) <= 6.5 * total
        )
        assert best <= cost(levels, chosen) <= 2 * best


def size(levels: dict[str, Levels], fine: set[str]) -> float:
    return sum(one.elements * one.bits[name in fine] for name, one in levels.items())


def cost(levels: dict[str, Levels], fine: set[str]) -> float:
    return sum(one.errors[name in fine] for name, one in levels.items())


def test_the_error_is_that_of_the_output() -> None:
    random = np.random.default_rng(0)
    array, rms = random.standard_normal((16, 64)).astype(np.float32), np.exp(random.standard_normal(64))
    x = random.standard_normal((20000, 64)) * rms
    rounded = unpack(pack(array, "q4_0"), "q4_0")
    measured = np.square(x @ (rounded - array).T).sum() / np.square(x @ array.T).sum()
    assert output_error(array, rms, "q4_0") == pytest.approx(measured, rel=0.1)
    assert output_error(array, rms, "q8_0") < output_error(array, rms, "q4_0") / 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ('mixed=["a=6"]', "mixed holds 'a=6', but must hold name=bits with bits one of 4, 5, 8, 16"),
        ('mixed=["a"]', "mixed holds 'a'"),
        ("mean-bits=3.0", "mean-bits is 3.0, but must be between 4 and 16"),
        ("mean-bits=6.0, bits=4", "bits=4 and mean-bits exclude each other"),
        ("mean-bits=6.0, scheme=fine", "mean-bits is for scheme=rtn"),
    ],
)
def test_bad_mixtures_are_named(options: str, message: str) -> None:
    with pytest.raises(BadOption) as caught:
        find_passes(f"quantize-weights{{{options}}}")
    assert message in str(caught.value)
