"""Kernels that choose and merge tokens against the ops' references, on the cases of the op tables."""

from __future__ import annotations

import pytest
import torch

import irx
from irx.backends.tvm.codegen import missing
from irx.backends.tvm.rules.tokens import TEMPLATES, rule
from tests.backends.token_cases import body, cases_of, check
from tests.backends.tvm.lowered_run import choices, prepare, run_lowered
from tests.ops.cases import Case
from tests.passes.small_models import WORDS, encoder

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

CASES = cases_of(TEMPLATES)


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """All kernels at once."""
    lowered = [rule(body(case, dtype)[0], choices()) for case, dtype in CASES]
    prepare([one for one in lowered if one is not None])


@pytest.mark.parametrize(("case", "dtype"), CASES, ids=[f"{case}-{dtype}" for case, dtype in CASES])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_kernel_computes_what_the_reference_says(case: Case, dtype: str, threads: int) -> None:
    graph, arrays = body(case, dtype)
    lowered = rule(graph, choices())
    assert lowered is not None
    found = run_lowered(lowered, graph, arrays, threads=threads)
    check(graph, arrays, found, dtype)


def test_every_op_has_a_case() -> None:
    assert {case.op for case, _ in CASES} == TEMPLATES.keys()


def test_merging_in_an_encoder_leaves_nothing_to_torch() -> None:
    """Lengths too short to merge, just enough, and long; padding in one row."""
    text = "merge-tokens{per_layer=2}"
    fast = irx.compile(encoder(2), target="tvm:cpu", pipeline=f"default | {text}")
    assert fast.ledger().summary.fallbacks == {}
    exact = irx.compile(encoder(2), target="torch:cpu", pipeline=text)
    for length in (3, 6, 33):
        ids, mask = torch.randint(0, WORDS, (2, length)), torch.ones(2, length, dtype=torch.bool)
        mask[1, length - 2 :] = False
        torch.testing.assert_close(fast(ids, mask), exact(ids, mask), rtol=0, atol=5e-5)
