"""Random programs through the passes of irx: EXACT ones keep the oracle's results, all keep programs well formed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from irx.analysis.inputs import random_inputs
from irx.analysis.reference import evaluate
from irx.ir.equal import exact_difference
from irx.ir.parser import parse
from irx.ir.printer import print_program
from irx.ir.program import Program
from irx.ir.verify import verify
from irx.ledger import REFUSED
from irx.pipeline.base import Context, Effect, Pass
from irx.pipeline.index import PassIndex
from irx.pipeline.instruments import Compare, Verify
from irx.pipeline.oracle import Oracle
from irx.pipeline.pipeline import Pipeline
from irx.rewrite.check import difference
from irx.target import find_device
from tests.ir.programs import computable_programs

SIZES = {"B": 2, "S": 3}
INDEX = PassIndex.scan("irx.passes", [])
KINDS = [INDEX.load(name) for name in INDEX]
ONCE = ("insert-cache", "slice-rows")  # ask for a language model
EXACT = [kind for kind in KINDS if kind.effect is Effect.EXACT and kind.name not in ONCE]
OTHERS = [kind for kind in KINDS if kind not in EXACT]
FAST = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def run(kinds: list[type[Pass]], program: Program) -> Program:
    pipeline = Pipeline(tuple(kind() for kind in kinds), (Verify(),))
    result, ledger = pipeline.run(program, Context(find_device("cpu-generic"), Oracle()))
    assert [row.reason for row in ledger.rows if row.decision == REFUSED] == []
    return result


def outputs(program: Program, inputs: dict[str, object]) -> list[np.ndarray]:
    """Casts do not round here: nothing else does in the oracle, so dropping a cast to the same dtype would count."""
    return evaluate(program.graphs["forward"], inputs, SIZES, program.weights, round_casts=False)


@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
def test_exact_passes_keep_results(kind: type[Pass]) -> None:
    @FAST
    @given(computable_programs())
    def check(program: Program) -> None:
        inputs = random_inputs(program.graphs["forward"], SIZES)
        before, after = outputs(program, inputs), outputs(run([kind], program), inputs)
        assert max(difference(new, old) for new, old in zip(after, before, strict=True)) <= 1e-12

    check()


@pytest.mark.parametrize("kind", OTHERS, ids=lambda kind: kind.name)
def test_passes_keep_programs_well_formed(kind: type[Pass]) -> None:
    @FAST
    @given(computable_programs())
    def check(program: Program) -> None:
        result = run([*map(INDEX.load, kind.requires), kind], program)
        again = parse(print_program(result))
        verify(again)
        assert exact_difference(result, again) is None

    check()


@settings(FAST, max_examples=50)
@given(computable_programs())
def test_the_preset_keeps_what_is_computed(program: Program) -> None:
    pipeline = Pipeline.parse("none", INDEX, (Verify(), Compare()))
    result, ledger = pipeline.run(program, Context(find_device("cpu-generic"), Oracle()), strict=True)
    inputs = random_inputs(program.graphs["forward"], SIZES)
    before, after = outputs(program, inputs), outputs(result, inputs)
    assert max(difference(new, old) for new, old in zip(after, before, strict=True)) <= 1e-9
    assert ledger.notes == []
