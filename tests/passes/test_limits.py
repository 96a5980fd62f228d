"""The limit of every lossy pass: the setting that must leave a program exactly as it is, and that says so."""

from __future__ import annotations

import pytest

from irx.analysis.calibration import Calibration
from irx.ir.equal import difference
from irx.passes import passes
from irx.pipeline.base import Effect
from irx.pipeline.pipeline import Pipeline
from tests.cases.running import context
from tests.passes.small_models import decoder, encoder
from tests.passes.weights.calibrating import by_oracle, ids

LIMITS: dict[str, tuple[str, ...]] = {
    "kv-evict": ("keep=1.0",),
    "kv-quantize": ("bits=16", "scheme=kivi, bits=16"),
    "lowrank-weights": ("rank=1.0",),
    "merge-tokens": ("per_layer=0",),
    "prune-tokens": ("keep=1.0",),
    "quantize-weights": ('mixed=["*=16"]',),
    "repair-output": ("units=changed", "units=all"),
    "share-attention": ("group=1", "group=1, ends=0, leader=previous"),
    "skip-layers": ("keep=1.0", "keep=3, policy=uniform", "keep=1.0, policy=tail, unit=mlp"),
    "slice-ffn": ("keep=1.0",),
}
ELSEWHERE = {
    "cast-activations": "a model of that dtype is the limit: tests/cases/cast-activations",
    "cast-weights": "a model of that dtype is the limit: tests/cases/cast-weights",
    "kv-ring": "without a window of its own, that of the model: tests/passes/cache/test_kv_ring",
}
CASES = [f"{name}{{{options}}}" for name, given in LIMITS.items() for options in given if name in passes()]


@pytest.mark.parametrize("text", CASES)
@pytest.mark.parametrize("model", [decoder, encoder])
def test_at_its_limit_a_pass_changes_nothing_and_says_so(text: str, model: type) -> None:
    program = model(3)
    ctx = context(program)
    ctx.calibration = Calibration(ids(1, 5, 40), by_oracle)
    made, ledger = Pipeline.parse(text, passes(), presets={}).run(program, ctx, strict=True)
    assert difference(made, program) is None
    (row,) = ledger.rows
    assert row.matches == 0
    assert row.near_misses or not row.reason.startswith("nothing like it")


def test_every_lossy_pass_has_a_limit() -> None:
    lossy = {name for name in passes() if passes().load(name).effect is Effect.LOSSY}
    assert lossy <= LIMITS.keys() | ELSEWHERE.keys(), "state its limit"
