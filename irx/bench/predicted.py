"""What lossy passes gain on a step of decoding: as the cost model says, and as measured, region by region."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from irx.bench.baselines.absent import Absent
from irx.bench.guard import guarded
from irx.bench.lab import Lab
from irx.bench.quality import text
from irx.bench.result import Result
from irx.bench.timing import Spread
from irx.ledger import KEPT

CHARACTERS = 20_000  # of the text, half of it for passes that look at data
PASSES = {
    "3 blocks left out": "skip-layers{policy=list, layers=[10, 15, 20]}",
    "attention shared in pairs": "share-attention{leader=previous, group=2}",
    "4-bit cache": "kv-quantize{bits=4}",
    "8-bit weights": "quantize-weights{bits=8}",
    "4-bit weights": "quantize-weights{bits=4}",
    "bf16 weights": "cast-weights{dtype=bf16}",
    "half of the feed-forward": "slice-ffn{keep=0.5}",
}


@dataclass(frozen=True)
class Predicted:
    """A row a pass, on the language model in float32: what is predicted in parts of what is measured."""

    name: str = "lossy"
    title: str = "gains of lossy passes on a decode step, predicted and measured"

    def measure(self, lab: Lab) -> Iterator[Result]:
        """The ledger flags predictions that are off by more than a quarter and than the noise; so do the verdicts."""
        for what, passes in PASSES.items():
            lab.tell(f"  {what}")
            row = Result(self.name, f"{what}: predicted gain in parts of the measured one", passes, None, "p")
            yield guarded(row, partial(_compared, lab, row))


def _compared(lab: Lab, row: Result) -> Result:
    from irx.ledger import MOST_OFF

    (before, expected), (after, left) = _step(lab, "default"), _step(lab, f"default | {row.pipeline}")
    measured, noise = before.seconds - after.seconds, (before.noise**2 + after.noise**2) ** 0.5
    predicted = before.seconds * (1 - left / expected)
    off = abs(predicted - measured) > max(MOST_OFF * abs(measured), noise)
    note = f"predicted {predicted * 1e6:+.0f} us, measured {measured * 1e6:+.0f} us, noise {noise * 1e6:.0f} us"
    share = predicted / measured if measured else 0.0
    return row.measured(Spread(share, share, share), "flagged" if off else "holds", note=note)


def _step(lab: Lab, pipeline: str) -> tuple[Any, float]:
    """The latency of a step, and what the cost model says of it. Raises Absent for no times, and a pass not kept."""
    import irx.api as api
    from irx.analysis.data import split
    from irx.ir.excerpt import main_graph
    from irx.pipeline.base import Context
    from irx.pipeline.instruments.gain import modelled
    from irx.pipeline.latency import CONTEXT
    from irx.pipeline.oracle import Oracle

    goal, captured = api.aim(lab.target), lab.source("f32").program
    data = split([text()[:CHARACTERS]], captured, lab.tokenizer)
    changed, ledger = api.transform(captured, goal, pipeline, data)
    for row in ledger.rows:
        if row.effect == "lossy" and row.decision != KEPT:
            raise Absent(f"{row.name}: {row.decision}: {row.reason}")
    program = main_graph(changed)
    (graph,) = program.graphs.values()
    found = api.divide(program, goal, ledger)[graph.name].latency(program, graph, goal.device, CONTEXT)
    if isinstance(found, str):
        raise Absent(found)
    return found, modelled(program, Context.of(program, goal.device, Oracle()))
