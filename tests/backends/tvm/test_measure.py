"""The times of regions: kept where they can be trusted."""

from __future__ import annotations

import pytest
import torch

import irx
from irx.backends.regions.lowered import Choices, default_schedule
from irx.backends.regions.steps import Steps
from irx.backends.tvm import measure, rings
from irx.backends.tvm.codegen import missing
from irx.backends.tvm.steps import Lowering
from irx.ir.types import KVType
from irx.pipeline.latency import Latency, timed_sizes
from irx.runtime.kv import KVState
from irx.target import host_cpu

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

PROGRAM = """\
program @one {
  size S in [1, 64]
  graph @forward(%x: f32[S, WIDTH]) -> (y: f32[S, WIDTH]) {
    %y = irx.exp(%x)
    return %y
  }
}
"""


@pytest.mark.parametrize(("noise", "timed"), [(0.1, 1), (0.5, 2)])
def test_a_disturbed_time_is_not_kept(noise: float, timed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_disturbed", {})
    graph = irx.parse(PROGRAM.replace("WIDTH", str(int(noise * 100)))).graphs["forward"]
    made: list[Latency] = []

    def take(*_: object) -> Latency:
        made.append(Latency(1.0, noise))
        return made[-1]

    monkeypatch.setattr(measure, "_timed", take)
    for _ in range(3):
        assert measure.latency(graph, host_cpu(), Choices(host_cpu(), default_schedule)) == Latency(1.0, noise)
    assert len(made) == timed
    measure._disturbed.clear()  # as in another process
    measure.latency(graph, host_cpu(), Choices(host_cpu(), default_schedule))
    assert len(made) == timed + (noise > measure.STEADY)


def test_regions_that_are_compared_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in every turn, those that graphs share once in it; the median is what counts from then on."""
    first, second = (irx.parse(PROGRAM.replace("WIDTH", width)).graphs["forward"] for width in ("24", "40"))
    order: list[str] = []

    def take(ring: Steps, *_: object) -> list[float]:
        order.append(str(ring.graph.outputs or ring.order[0].results[0].type))
        return [float(len(order)), 100.0]

    monkeypatch.setattr(measure, "times", take)
    choices = Choices(host_cpu(), default_schedule)
    found = measure.latencies([first, second, first], host_cpu(), choices)
    assert order == 3 * order[:2] and len(set(order)) == 2
    assert [one.seconds for one in found] == [3.0, 4.0, 3.0]
    assert measure.latency(second, host_cpu(), choices) == found[1]


STATES = """\
program @one {
  size B in [1, 4]
  size S in [1, 64]
  graph @decode(%q: f32[B, 2, S, 8], %pos: i64[B, S], %kv: kv<heads=2, dim=8, dense, f32MORE>) -> (y: f32[B, 2, S, 8]) {
    %y = irx.kv_attention(%q, %kv, %pos) {scale=0.5} : f32[B, 2, S, 8]
    return %y
  }
}
"""

STORED = """\
program @one {
  size B in [1, 4]
  size S in [1, 64]
  graph @prefill(%q: f32[B, 2, S, 8], %pos: i64[B, S], %kv: kv<heads=2, dim=8, dense, f32>) -> (
    y: f32[B, 2, S, 8], kv_out: kv<heads=2, dim=8, dense, f32>) {
    %all = irx.kv_append(%kv, %q, %q, %pos) : kv<heads=2, dim=8, dense, f32>
    %y = irx.kv_attention(%q, %all, %pos) {scale=0.5} : f32[B, 2, S, 8]
    return %y, %all
  }
}
"""


@pytest.mark.parametrize(
    ("more", "held"), [("", 4096), (", kept=0.25", 1024), (", window=100, sinks=4", 99), (", page=64", 4096)]
)
def test_states_that_are_timed_hold_what_their_types_leave_of_the_context(more: str, held: int) -> None:
    graph = irx.parse(STATES.replace("MORE", more)).graphs["decode"]
    sizes = timed_sizes(graph, 4096)
    assert sizes == {"B": 1, "S": 128, "T": 4096}
    _, pos, state = rings.inputs_of(graph, sizes)
    assert isinstance(state, KVState) and isinstance(pos, torch.Tensor)
    last = max(held, 128)
    assert state.lengths == (held,) and pos.tolist() == [list(range(last - 128, last))]


def test_prompts_are_timed_whose_tokens_are_stored() -> None:
    """As those of a prompt are: one behind the other."""
    graph = irx.parse(STORED).graphs["prefill"]
    found = measure.latency(graph, host_cpu(), Choices(host_cpu(), default_schedule), 32)
    assert found.seconds > 0


def test_graphs_without_states_are_timed_with_as_many_rows() -> None:
    assert timed_sizes(irx.parse(PROGRAM.replace("WIDTH", "8")).graphs["forward"], 300)["S"] == 300


def test_every_copy_of_a_region_has_a_state_of_its_own() -> None:
    """So many that they do not fit in caches: a step of the model reads each state once."""
    graph = irx.parse(STATES.replace("MORE", "").replace("dense", "blocked")).graphs["decode"]
    (step,) = Lowering(Choices(host_cpu(), default_schedule)).steps(graph).steps
    held = 4096 * 2 * 2 * 8 * 4
    assert rings.copies_of(step, 4096) == rings.RING // held
    ring = rings.ring_of(step, 4096)
    assert len(ring.steps) == rings.RING // held
    assert len([value for value in ring.graph.inputs if isinstance(value.type, KVType)]) == len(ring.steps)
    assert len([value for value in ring.graph.inputs if not isinstance(value.type, KVType)]) == 2
