"""The schedule of a kernel without a search: measured here, shipped, measured on a similar device, or the default."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from irx.target import Device
from irx.tuning.database import Database
from irx.tuning.row import Row, faster, read_document
from irx.tuning.space import Schedule
from irx.tuning.task import Fingerprint, Task, TaskKey

LIBRARY = Path(__file__).parent / "library"
LEAST_IN_COMMON = 0.5
"""Of the features of two devices together, what both must have for schedules of one to be tried on the other."""
MOST_CORES = 2.0
"""How many times the cores of the other a device may have for that: how work is shared out depends on them."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """Where a schedule is from: `measured`, `shipped`, `modelled`, `nearest` or `default`; with the row, but for
    defaults."""

    kind: str
    row: Row | None = None

    def __str__(self) -> str:
        if self.row is None:
            return "default, not tuned"
        if self.row.modelled:
            return f"modelled, {self.row.when}, never run"
        device = f" on {self.row.device}" if self.kind == "nearest" else ""
        return f"{self.kind}{device}, {self.row.when}, {self.row.seconds * 1e6:.4g} us"


@cache
def shipped() -> tuple[Row, ...]:
    """The schedules that come with IRX, of all devices."""
    return tuple(faster(row for path in sorted(LIBRARY.glob("*.json")) for row in read_document(path)).values())


class Schedules:
    """Finds schedules for one device. Reads the database when it is made; later rows need a new one."""

    def __init__(
        self,
        device: Device,
        database: Database | None = None,
        library: Sequence[Row] | None = None,
        note: Callable[[str], None] = logger.warning,
    ) -> None:
        self.device = Fingerprint.of(device)
        self._note = note
        self._noted: set[Fingerprint] = set()
        own = (database or Database()).rows()
        rest = shipped() if library is None else library
        self._measured = {row.key: row for row in own if row.device == self.device}
        self._shipped = {row.key: row for row in rest if row.device == self.device}
        # What was modelled for another device says less than this kernel's own defaults.
        self._others = _by_key(row for row in (*own, *rest) if row.device != self.device and not row.modelled)

    def find(self, task: Task) -> tuple[Schedule, Origin]:
        """The schedule of a kernel, and where it is from. That it is another device's is noted, once for a device.

        A row whose choices the space no longer has is passed over.
        """
        for kind, row in self._candidates(task.key):
            schedule = task.space.adopt(row.schedule)
            if schedule is None:
                continue
            if kind == "nearest":
                self._say(row.device)
            return schedule, Origin(kind, row)
        return task.space.default(), Origin("default")

    def _candidates(self, key: TaskKey) -> Iterable[tuple[str, Row]]:
        here = [(kind, t[key]) for kind, t in (("measured", self._measured), ("shipped", self._shipped)) if key in t]
        for kind, row in sorted(here, key=lambda pair: pair[1].modelled):
            yield "modelled" if row.modelled else kind, row
        near = [(_likeness(self.device, row.device), row) for row in self._others.get(key, ())]
        ranked = sorted((pair for pair in near if pair[0] is not None), key=lambda pair: pair[0] or (), reverse=True)
        yield from (("nearest", row) for _, row in ranked)

    def _say(self, device: Fingerprint) -> None:
        if device not in self._noted:
            self._noted.add(device)
            self._note(f"no schedules measured on {self.device}: those of {device} are used; `irx tune` measures here")


def _by_key(rows: Iterable[Row]) -> dict[TaskKey, list[Row]]:
    table: dict[TaskKey, list[Row]] = {}
    for row in rows:
        table.setdefault(row.key, []).append(row)
    return table


def _likeness(here: Fingerprint, there: Fingerprint) -> tuple[float, float] | None:
    """The share of features in common, then how close the numbers of cores are; None where nothing is to be learned.

    That is another kind of device, one that shares less than half of the features (what is best for wide vectors is no
    guess for narrow ones), and one with more than twice or less than half of the cores.
    """
    if here.kind != there.kind:
        return None
    mine, theirs = set(here.features), set(there.features)
    either = mine | theirs
    share = len(mine & theirs) / len(either) if either else 1.0
    distance = abs(math.log(here.cores / there.cores))
    if share < LEAST_IN_COMMON or distance > math.log(MOST_CORES):
        return None
    return share, -distance
