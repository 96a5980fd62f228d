"""How close decoding comes to reading: bytes a second of a step, as a share of the best rate of plain reading.

For every format of the weights a ring of as many bytes as the step moves is read by the same threads in the same run.
"""

from __future__ import annotations

from functools import partial

from irx.bench.baselines.reading import reader
from irx.bench.lab import Lab
from irx.bench.race import Candidate, Race, Ready, Row
from irx.bench.rows.decode import EIGHT_BITS, ours

FORMATS = {
    "float32": ("f32", "default", 0.90),
    "bf16": ("bf16", "default", 0.80),
    "8-bit": ("f32", EIGHT_BITS, 0.80),
    "the file's 4-bit": ("file", "default", 0.70),
}


def _read(lab: Lab, source: str, pipeline: str) -> Ready:
    size = ours(lab, source, pipeline).bytes
    return Ready(reader(size, lab.threads)[0], size)


def _candidates() -> dict[str, Candidate]:
    found = {}
    for name, (source, pipeline, _) in FORMATS.items():
        found[f"IRX {name}"] = Candidate(partial(ours, source=source, pipeline=pipeline), None)
        found[f"read {name}"] = Candidate(partial(_read, source=source, pipeline=pipeline), None)
    return found


FAMILY = Race(
    name="rate",
    title="decode rate as a share of the best rate of reading a ring of the same bytes",
    reference="IRX float32",
    candidates=_candidates(),
    rows=tuple(
        Row(f"decode rate, {name} weights", f"IRX {name}", (f"read {name}",), wanted, pipeline, percent=True)
        for name, (_, pipeline, wanted) in FORMATS.items()
    ),
)
