"""One file in a folder named as a pass is one test of that pass:

    // raise-norm | fold-constants        the passes to run, as a pipeline; without this line the folder's pass
    graph @forward(%x: f32[B, 8]) -> ...  before; named sizes and weights as in any program
    // ----- expected
    graph @forward(%x: f32[B, 8]) -> ...  after; left out when nothing may change
    // ----- near misses
    // rms_norm: mean: over axes          the beginning of a reported reason each, one for every near miss

Graphs are compared up to names and locations. Before and after are also evaluated on random inputs and must agree, as
far as the effect of the passes allows: exactly, within the tolerances of the ops, or in the rough where
they are lossy: a rewrite that is wrong is off by as much as there is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import irx.ops  # noqa: F401
from irx.analysis.inputs import random_inputs
from irx.analysis.reference import evaluate
from irx.ir.dims import Range
from irx.ir.equal import difference
from irx.ir.opdef import Array
from irx.ir.parser import parse
from irx.ir.printer import print_program
from irx.ir.program import Program
from irx.ir.verify import verify
from irx.ops.cache import KVArrays
from irx.pipeline.base import Effect, Pass, Report
from irx.rewrite import check
from irx.rewrite.check import small_sizes
from tests.cases.running import context, find_passes, random_weights

FOLDER = Path(__file__).parent
CASES = sorted(FOLDER.glob("*/*.irx"))
TOLERANCES = {Effect.EXACT: 0.0, Effect.ROUNDING: 1e-5, Effect.LOSSY: 0.2}


@dataclass(frozen=True)
class Case:
    passes: tuple[Pass, ...]
    before: Program
    expected: Program
    near_misses: list[str]


def read(path: Path) -> Case:
    text = path.read_text()
    sections = re.split(r"^// ----- (expected|near misses)\n", text, flags=re.MULTILINE)
    parts = {"before": sections[0], **dict(zip(sections[1::2], sections[2::2], strict=True))}
    first = re.match(r"// (.*)\n", text)
    passes = find_passes(first.group(1) if first else path.parent.name)
    misses = [line.removeprefix("// ") for line in parts.get("near misses", "").splitlines() if line]
    before, expected = parse(parts["before"], path.name), parse(parts.get("expected", parts["before"]), path.name)
    return Case(passes, before, expected, misses)


def run(case: Case, program: Program) -> Report:
    report = Report()
    for one in case.passes:
        report.add(one.run(program, context(program)))
    return report


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_case(path: Path) -> None:
    case = read(path)
    program = case.before.clone()
    report = run(case, program)
    verify(program)
    found = difference(program, case.expected)
    assert found is None, f"{found}\n{print_program(program)}"
    reasons = sorted(miss.reason for miss in report.near_misses)
    assert len(reasons) == len(case.near_misses), reasons
    for reason, wanted in zip(reasons, sorted(case.near_misses), strict=True):
        assert reason.startswith(wanted)
    assert bool(report.sites) == (difference(program, case.before) is not None)


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_numbers(path: Path) -> None:
    case = read(path)
    program = case.before.clone()
    run(case, program)
    tolerance = max(TOLERANCES[one.effect] for one in case.passes)
    sizes = small_sizes(case.before.sizes or {"B": Range()})
    random_weights(case.before, sizes)
    for name in case.before.graphs:
        compare(case.before, program, name, sizes, tolerance)


def compare(before: Program, after: Program, name: str, sizes: dict[str, int], tolerance: float) -> None:
    if name not in after.graphs:
        return
    for entry in before.weights:
        if entry.load is not None and entry.weight.name in after.weights:
            after.weights.bind(entry.weight.name, entry.load)
    inputs = random_inputs(before.graphs[name], sizes)
    exact = tolerance == 0.0
    old = evaluate(before.graphs[name], inputs, sizes, before.weights, round_casts=exact)
    new = evaluate(after.graphs[name], inputs, sizes, after.weights, round_casts=exact)
    for a, b in zip(map(_array, new), map(_array, old), strict=True):
        assert a.shape == b.shape
        assert np.isfinite(b).any(), "the case computes nothing finite: it proves nothing"
        assert check.difference(a, b) <= tolerance


def _array(result: Any) -> Array:
    """A result to compare: of a KV state the keys and values behind each other."""
    return np.concatenate([result.k.ravel(), result.v.ravel()]) if isinstance(result, KVArrays) else result
