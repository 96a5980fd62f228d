"""The ledger: what every pass of a compilation did to a model, what it cost and what it gained.

One row stands for the sites that one application of a pass treated alike. A figure that was not measured is None, and
printed as a dash, never as a zero. The ledger is plain data: it is stored with a compiled model and needs no compiler.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from irx.errors import DamagedFile

KEPT = "kept"
DROPPED = "dropped"
REFUSED = "refused"
NO_MATCH = "no match"
DASH = "—"
MOST_OFF = 0.25
"""How far a prediction may be from the measured gain, in parts of it, before the ledger flags it."""


@dataclass(frozen=True)
class Miss:
    """A place that almost matched, with the first condition that failed."""

    graph: str
    place: str
    reason: str


@dataclass(frozen=True)
class Row:
    """What one application of a pass did to one group of sites.

    `step` counts the applications of a pipeline from 0; `places` are the sites' module paths or source lines. `error`
    is the largest max|y - y0| / max|y0| that a check measured. `metric` names the quality measure of which the program
    up to this pass has used `spent`, so that `left` remains of the budget; `quality` holds the figures on held-out
    data, as `irx.Budget` names them. `latency` is the change in seconds of one decode step on the device, `noise` its
    band, `predicted` what the cost model says of it, `bytes` the change in bytes of all weights and of one row of
    caches at the longest length; negative is a gain. `seconds` is the time the pass itself took. `reason` says why the
    pass was dropped or refused, or why it matched nothing.
    """

    step: int
    name: str
    stage: str
    effect: str
    decision: str
    what: str = ""
    graphs: tuple[str, ...] = ()
    matches: int = 0
    places: tuple[str, ...] = ()
    near_misses: tuple[Miss, ...] = ()
    error: float | None = None
    metric: str = ""
    spent: float | None = None
    left: float | None = None
    quality: dict[str, float] = field(default_factory=dict)
    latency: float | None = None
    noise: float | None = None
    predicted: float | None = None
    bytes: int | None = None
    seconds: float | None = None
    reason: str = ""

    @property
    def mispredicted(self) -> bool:
        """True where the cost model is off by more than a quarter of what was measured, and by more than the noise."""
        if self.predicted is None or self.latency is None:
            return False
        return abs(self.predicted - self.latency) > max(MOST_OFF * abs(self.latency), self.noise or 0.0)

    @property
    def unpaid(self) -> bool:
        """True where the pass was dropped because it brings nothing: it was timed."""
        return self.decision == DROPPED and self.latency is not None


@dataclass(frozen=True)
class Point:
    """A candidate of a search: its passes, seconds of a step with their noise, and its share of the budget.

    `share` and `figures` are of calibration data; 1 is all of the budget. `front`: no candidate is both faster and
    closer to the original. `chosen`: it was compiled.
    """

    text: str
    seconds: float
    share: float
    noise: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)
    front: bool = False
    chosen: bool = False


@dataclass
class Summary:
    """Facts about the whole compilation.

    `plan` is the pipeline without the lossy passes that were dropped or refused, as another target may be given it.
    `operations` counts the nodes by op, `calls` those left to torch by target; `fallbacks` says why a node is not run
    by the chosen backend. `error` compares the final `forward` with the captured one, on the oracle; `quality` does
    so on held-out data, behind the last lossy pass that was kept.
    """

    backend: str = ""
    device: str = ""
    pipeline: str = ""
    plan: str = ""
    dtype: str = ""
    operations: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    fallbacks: dict[str, str] = field(default_factory=dict)
    error: float | None = None
    quality: dict[str, float] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The facts that are known, one line each."""
        place = " on ".join(part for part in (self.backend, self.device) if part)
        lines = [f"runs as: {place}" + (f", {self.dtype}" if self.dtype else "")] if place else []
        lines += [f"pipeline: {self.pipeline}"] if self.pipeline else []
        if self.operations:
            lines.append(f"operations: {sum(self.operations.values())} ({_counts(self.operations)})")
        if self.operations or self.calls:
            calls = f" ({_counts(self.calls)})" if self.calls else ""
            lines.append(f"left to torch: {sum(self.calls.values())} calls{calls}")
        lines += [f"fallback: {node}: {reason}" for node, reason in self.fallbacks.items()]
        lines += [f"error against the captured model: {_number(self.error)}"] if self.error is not None else []
        figures = ", ".join(f"{name} {value:.4g}" for name, value in self.quality.items())
        lines += [f"quality on held-out data: {figures}"] if figures else []
        return lines


@dataclass
class Ledger:
    """All rows in the order of the pipeline, remarks, a summary, and the candidates of a search where there was one."""

    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    summary: Summary = field(default_factory=Summary)
    points: list[Point] = field(default_factory=list)

    def refused(self) -> list[Row]:
        """The rows of passes that failed their check."""
        return [row for row in self.rows if row.decision == REFUSED]

    def to_json(self) -> str:
        """Everything, as indented JSON."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> Ledger:
        """What `to_json` wrote. Raises DamagedFile for anything else."""
        try:
            data = json.loads(text)
            rows = [_row(item) for item in data["rows"]]
            points = [Point(**item) for item in data.get("points", ())]
            return Ledger(rows, [str(note) for note in data["notes"]], Summary(**data["summary"]), points)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedFile(f"this is no ledger: {type(error).__name__}: {error}") from error

    def to_markdown(self) -> str:
        """A table, the near misses, the notes and the summary."""
        columns = _shown_columns(self.rows)
        lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
        for row in self.rows:
            cells = _cells(row)
            lines.append("| " + " | ".join(_escape(cells[column]) for column in columns) + " |")
        lines += ["", *(f"- {line}" for line in self._remarks())]
        return "\n".join(lines) + "\n"

    def __str__(self) -> str:
        """A table as wide as the terminal, at least 100 columns, and the remarks below it."""
        from io import StringIO

        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        columns = _shown_columns(self.rows)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            table.add_column(column, justify="right" if column in _NUMBERS else "left", no_wrap=column in _SHORT)
        for row in self.rows:
            cells = _cells(row)
            table.add_row(*(Text(cells[column]) for column in columns))
        out = StringIO()
        width = max(shutil.get_terminal_size((160, 24)).columns, 100)
        Console(file=out, width=width, color_system=None, highlight=False).print(table)
        lines = [line.rstrip() for line in out.getvalue().splitlines()]
        return "\n".join([*lines, *self._remarks()]).strip("\n")

    def _remarks(self) -> list[str]:
        misses = [
            f"near miss of {row.name}: {miss.reason}{count} at @{miss.graph}: {miss.place}"
            for row in self.rows
            for miss, count in _grouped(row.near_misses)
        ]
        off = [_off(row) for row in self.rows if row.mispredicted]
        return [*self.summary.lines(), *off, *misses, *self.notes]


_NUMBERS = ("sites", "error", "spent", "left", "latency", "predicted", "bytes", "seconds")
_SHORT = ("pass", "stage", "effect", "decision", *_NUMBERS)


def _cells(row: Row) -> dict[str, str]:
    where = f" in {', '.join(row.graphs)}" if row.graphs else ""
    latency = f"{row.latency * 1e6:+.1f} us" if row.latency is not None else DASH
    noise = f" ± {row.noise * 1e6:.1f}" if row.noise is not None else ""
    return {
        "pass": row.name,
        "stage": row.stage,
        "effect": row.effect,
        "decision": row.decision,
        "sites": str(row.matches),
        "error": _number(row.error),
        "spent": f"{_number(row.spent)} {row.metric}".strip() if row.spent is not None else DASH,
        "left": _number(row.left),
        "latency": latency + noise,
        "predicted": DASH if row.predicted is None else f"{row.predicted * 1e6:+.1f} us{' !' * row.mispredicted}",
        "bytes": f"{row.bytes:+,}" if row.bytes is not None else DASH,
        "seconds": f"{row.seconds:.2f}" if row.seconds is not None else DASH,
        "what": "; ".join(part for part in (row.what + where, row.reason) if part),
    }


def _shown_columns(rows: Sequence[Row]) -> list[str]:
    """Columns that no row of this ledger could fill are left out; latency and bytes stay, as what a user looks for."""
    columns = list(_cells(Row(0, "", "", "", "")))
    measured = {name: any(getattr(row, name) is not None for row in rows) for name in ("spent", "left", "predicted")}
    return [column for column in columns if measured.get(column, True)]


def _off(row: Row) -> str:
    assert row.latency is not None and row.predicted is not None
    said, found = row.predicted * 1e6, row.latency * 1e6
    return f"! the cost model is off for {row.name}: it predicts {said:+.1f} us a step, measured were {found:+.1f} us"


def _grouped(misses: Sequence[Miss]) -> list[tuple[Miss, str]]:
    """The first miss of every reason, with how many more there are."""
    first: dict[str, Miss] = {}
    count: dict[str, int] = {}
    for miss in misses:
        first.setdefault(miss.reason, miss)
        count[miss.reason] = count.get(miss.reason, 0) + 1
    return [(miss, f" ({count[reason]} times)" if count[reason] > 1 else "") for reason, miss in first.items()]


def _row(data: Mapping[str, Any]) -> Row:
    misses = tuple(Miss(**miss) for miss in data["near_misses"])
    return Row(**{**data, "graphs": tuple(data["graphs"]), "places": tuple(data["places"]), "near_misses": misses})


def _counts(counts: Mapping[str, int]) -> str:
    """The most frequent first."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def merged(rows: Iterable[Row]) -> list[Row]:
    """Rows that say the same of several graphs as one row each, in the order of the first."""
    found: list[Row] = []
    for row in rows:
        place = next((i for i, other in enumerate(found) if _alike(row, other)), None)
        if place is None:
            found.append(row)
            continue
        first = found[place]
        graphs = tuple(dict.fromkeys((*first.graphs, *row.graphs)))
        places = tuple(dict.fromkeys((*first.places, *row.places)))
        found[place] = replace(first, graphs=graphs, places=places, matches=first.matches + row.matches)
    return found


def _alike(row: Row, other: Row) -> bool:
    """True for rows that differ in where their sites are only."""
    return replace(row, graphs=(), places=(), matches=0) == replace(other, graphs=(), places=(), matches=0)


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.2g}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
