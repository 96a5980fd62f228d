"""Schedules measured on this machine, and those imported from others: a file of JSON lines per device.

Rows are only ever appended, each with one write under a lock, so a process that is killed costs at most the row it was
writing: a line that cannot be read is left out with a note. Of several rows of a kernel on a device the last counts.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from irx.cache import cache_folder
from irx.tuning.row import Place, Row, faster, read_rows
from irx.tuning.task import Fingerprint


@dataclass(frozen=True)
class Merged:
    """What became of rows that were merged in: new kernels, faster than the row that was there, and not faster."""

    added: int = 0
    faster: int = 0
    left: int = 0


class Database:
    """Rows by device and kernel, in one folder; `schedules` in the user's cache folder unless named."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder() / "schedules"

    def rows(self) -> list[Row]:
        """The rows that count, of all devices."""
        files = sorted(self.folder.glob("*.jsonl"))
        return [row for file in files for row in self._table(file).values()]

    def rows_of(self, device: Fingerprint) -> list[Row]:
        """The rows that count, of one device."""
        return [row for row in self._table(self._file(device)).values() if row.device == device]

    def add(self, row: Row) -> None:
        """Append a row, which replaces an older one of the same kernel. Raises OSError where it cannot be written."""
        file = self._file(row.device)
        with self._lock(file):
            _append(file, [row])

    def merge(self, rows: Iterable[Row]) -> Merged:
        """Add rows of other machines: of a kernel measured on both sides the faster stays, nothing is dropped."""
        by_file: dict[Path, list[Row]] = {}
        for row in faster(rows).values():
            by_file.setdefault(self._file(row.device), []).append(row)
        added = better = left = 0
        for file, found in by_file.items():
            with self._lock(file):
                known = self._table(file)
                new = [row for row in found if row.place not in known]
                won = [row for row in found if row.place in known and row.rank < known[row.place].rank]
                _append(file, [*new, *won])
            added, better, left = added + len(new), better + len(won), left + len(found) - len(new) - len(won)
        return Merged(added, better, left)

    def _table(self, file: Path) -> dict[Place, Row]:
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return {}
        lines = [line for line in content.split(b"\n") if line.strip()]
        return {row.place: row for row in read_rows(lines, str(file))}

    def _file(self, device: Fingerprint) -> Path:
        readable = re.sub(r"[^a-z0-9]+", "-", device.model.lower()).strip("-")[:40]
        return self.folder / f"{readable}-{device.cores}-{device.digest}.jsonl"

    def _lock(self, file: Path) -> FileLock:
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(file.with_suffix(".lock"))


def _append(file: Path, rows: Iterable[Row]) -> None:
    text = b"".join(json.dumps(row.to_json()).encode() + b"\n" for row in rows)
    if not text:
        return
    with file.open("a+b") as stream:
        if stream.seek(0, os.SEEK_END) and _last_byte(file) != b"\n":
            text = b"\n" + text  # a writer was killed in the middle of a line
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _last_byte(file: Path) -> bytes:
    with file.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1)
