"""EXACT passes on random programs: results stay equal, the program stays sound, a second run changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from irx.analysis.inputs import random_inputs
from irx.analysis.reference import evaluate
from irx.ir.equal import difference
from irx.ir.program import Program
from irx.ir.verify import verify
from irx.rewrite.check import small_sizes
from tests.cases.running import context, find_passes
from tests.ir.programs import computable_programs

EXACT = ("remove-noops", "cse", "dead-nodes", "raise-shapes")


@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(program=computable_programs())
def test_results_stay_equal(name: str, program: Program) -> None:
    (one,) = find_passes(name)
    after = program.clone()
    one.run(after, context(after))
    verify(after)
    sizes = small_sizes(program.sizes)
    inputs = random_inputs(program.graphs["forward"], sizes)
    old = evaluate(program.graphs["forward"], inputs, sizes, program.weights)
    new = evaluate(after.graphs["forward"], inputs, sizes, after.weights)
    for a, b in zip(new, old, strict=True):
        np.testing.assert_array_equal(a, b)
    again = after.clone()
    assert one.run(again, context(again)).sites == []
    assert difference(again, after) is None


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(program=computable_programs())
def test_recognition_leaves_random_programs_sound(program: Program) -> None:
    names = "raise-norm | raise-activation | raise-linear | raise-rope | fold-constants"
    for one in find_passes(names):
        one.run(program, context(program))
        verify(program)
