"""One decode step of 4 and of 16 rows, with 8-bit weights."""

from __future__ import annotations

from functools import partial

from irx.bench.baselines.language import eager_decode
from irx.bench.lab import Lab
from irx.bench.race import Candidate, Race, Ready, Row
from irx.bench.rows.decode import CONTEXT, EIGHT_BITS, ours


def _eager(lab: Lab, batch: int) -> Ready:
    return Ready(eager_decode(lab.module("f32"), lab.ids(CONTEXT, batch)))


def _family(batch: int, at_least: float) -> Race:
    return Race(
        name="batch",
        title=f"one decode step of {batch} rows at a context of {CONTEXT} tokens",
        reference="eager f32",
        candidates={
            "eager f32": Candidate(partial(_eager, batch=batch), 0.0),
            "IRX 8-bit": Candidate(partial(ours, source="f32", pipeline=EIGHT_BITS, batch=batch), 0.1),
        },
        rows=(Row(f"decode, batch {batch}, 8-bit weights", "IRX 8-bit", ("eager f32",), at_least, EIGHT_BITS),),
    )


FAMILIES = (_family(4, 6), _family(16, 4))
