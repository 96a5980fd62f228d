"""One measured schedule, and the document in which schedules travel between machines."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from irx.errors import BadSchedules
from irx.tuning.space import Schedule
from irx.tuning.task import Fingerprint, TaskKey

FORMAT = 1

Place: TypeAlias = tuple[Fingerprint, TaskKey]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """The best schedule found for one kernel on one device.

    `seconds` is the median of one call, `noise` half the distance of its quartiles as a share of that, and
    `default_seconds` the median of the default schedule in the same run, None where it failed. `trials` counts the
    candidates tried, `refused` those that failed or were off. `when` is a day, `versions` are those of the packages
    that made the kernel. A `modelled` row was never run: its choices and seconds are those of a model of the device.
    """

    device: Fingerprint
    key: TaskKey
    schedule: Schedule
    seconds: float
    noise: float
    default_seconds: float | None
    trials: int
    refused: int
    when: str
    versions: Mapping[str, str] = field(default_factory=dict)
    modelled: bool = False

    @property
    def place(self) -> Place:
        """What the row is found by."""
        return self.device, self.key

    @property
    def rank(self) -> tuple[bool, float]:
        """What is better is smaller: measured before modelled, then fewer seconds."""
        return self.modelled, self.seconds

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        about = {name: getattr(self, name) for name in _NUMBERS}
        device = {**asdict(self.device), "features": list(self.device.features)}
        place = {"device": device, "key": asdict(self.key), "schedule": self.schedule.to_json()}
        origin = {"modelled": True} if self.modelled else {}
        return {"format": FORMAT, **place, **about, "when": self.when, "versions": dict(self.versions), **origin}

    @classmethod
    def from_json(cls, data: Any) -> Row:
        """What `to_json` gave. Raises ValueError, KeyError or TypeError for anything else."""
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']} is not {FORMAT}")
        device, schedule = data["device"], data["schedule"]
        if not all(isinstance(value, bool | int | float | str) for value in schedule.values()):
            raise ValueError("a choice is not a plain value")
        seconds = float(data["seconds"])
        if not (math.isfinite(seconds) and seconds > 0):
            raise ValueError(f"{seconds} seconds")
        return cls(
            Fingerprint(**{**device, "features": tuple(device["features"])}),
            TaskKey(**data["key"]),
            Schedule(schedule),
            seconds,
            when=str(data["when"]),
            versions=dict(data["versions"]),
            modelled=data.get("modelled", False) is True,
            **{name: data[name] for name in _NUMBERS if name != "seconds"},
        )


_NUMBERS = ("seconds", "noise", "default_seconds", "trials", "refused")


def read_rows(items: Iterable[Any], place: str) -> list[Row]:
    """Rows from plain data. Those that are none are left out, with a note."""
    rows, damaged = [], []
    for number, item in enumerate(items, 1):
        try:
            rows.append(Row.from_json(json.loads(item) if isinstance(item, str | bytes) else item))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            damaged.append(f"{number} ({type(error).__name__})")
    if damaged:
        logger.warning("%s: rows that cannot be read are left out: %s", place, ", ".join(damaged))
    return rows


def faster(rows: Iterable[Row]) -> dict[Place, Row]:
    """By device and key, the row with the lowest median, measured before modelled; the first of equal ones."""
    best: dict[Place, Row] = {}
    for row in rows:
        found = best.get(row.place)
        if found is None or row.rank < found.rank:
            best[row.place] = row
    return best


def write_document(rows: Iterable[Row]) -> str:
    """Rows as one JSON document, which reads back and whose lines are rows, so that changes can be reviewed."""
    ordered = sorted(rows, key=lambda row: (str(row.device), row.device.digest, str(row.key), row.key.version))
    lines = ",\n".join(json.dumps(row.to_json(), sort_keys=True) for row in ordered)
    return f'{{"format": {FORMAT}, "rows": [\n{lines}\n]}}\n'


def read_document(path: Path) -> list[Row]:
    """The rows of a file that `write_document` made. Raises BadSchedules for any other, or none."""
    if not path.is_file():
        raise BadSchedules(f"there is no file of schedules {path}", fix="make one with irx tune --export")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadSchedules(f"{path} is not JSON: {error}", fix="export it again with irx tune --export") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT or not isinstance(document.get("rows"), list):
        raise BadSchedules(
            f"{path} holds no schedules in format {FORMAT}", fix="export it again with irx tune --export"
        )
    return read_rows(document["rows"], str(path))
