"""What watches a pipeline: verifying, timing, dumping, comparing. Passes themselves do none of it."""

from __future__ import annotations

import os

from irx.pipeline.instruments.base import Dropped, Instrument, Kept, Verdict
from irx.pipeline.instruments.compare import Compare
from irx.pipeline.instruments.dump import Dump
from irx.pipeline.instruments.gain import Gain
from irx.pipeline.instruments.quality import Quality
from irx.pipeline.instruments.size import Size
from irx.pipeline.instruments.time import Time
from irx.pipeline.instruments.verify import Verify


def standard_instruments(*outer: Instrument) -> tuple[Instrument, ...]:
    """Verify, Size and Time, and Dump where IRX_DUMP_DIR names a folder. The last one stands closest around the pass.

    `outer` are told of a pass only after it was timed and verified.
    """
    folder = os.environ.get("IRX_DUMP_DIR")
    return (*((Dump(folder),) if folder else ()), *outer, Verify(), Size(), Time())


__all__ = [
    "Compare",
    "Dropped",
    "Dump",
    "Gain",
    "Instrument",
    "Kept",
    "Quality",
    "Size",
    "Time",
    "Verdict",
    "Verify",
    "standard_instruments",
]
