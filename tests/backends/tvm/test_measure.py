"""The times of regions: kept where they can be trusted."""

from __future__ import annotations

import pytest

import irx
from irx.backends.regions.lowered import Choices, default_schedule
from irx.backends.tvm import measure
from irx.backends.tvm.codegen import missing
from irx.pipeline.latency import Latency
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
