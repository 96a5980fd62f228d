"""Say where two programs first differ, and how their ledgers do.

Each side is a program in text form or a saved artifact; - is standard input. Names of values, locations and the order
of independent nodes do not count; types, operations and attributes do. Of ledgers, decisions, sites and what passes
cost in quality are compared, and gains where they differ by more than their noise. Two ledgers in JSON, as
`irx compile --json` prints them, are compared alone. The status is 1 when the programs, or two lone ledgers, differ.

examples:
  irx diff before.irx after.irx
  irx diff first-artifact second-artifact
  irx opt model.irx -p raise-norm | irx diff model.irx -
  irx diff first-ledger.json second-ledger.json
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from itertools import groupby
from math import hypot
from pathlib import Path
from typing import TYPE_CHECKING

from irx.cli._output import add_json, print_json
from irx.cli._programs import JSON, read_ledger, read_program

if TYPE_CHECKING:
    from irx.ledger import Ledger, Row


def configure(parser: ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("first", help="a .irx file, a saved artifact, a ledger in JSON, or - for standard input")
    parser.add_argument("second", help="the same")
    add_json(parser, "print JSON instead of text")


def run(arguments: Namespace) -> int:
    """Print the differences; 1 when there are any in the programs."""
    from irx.ir.equal import difference

    alone = all(Path(name).suffix == JSON and Path(name).is_file() for name in (arguments.first, arguments.second))
    found = None if alone else difference(read_program(arguments.first), read_program(arguments.second))
    changes = _changes(arguments.first, arguments.second)
    if arguments.json:
        equal = not changes if alone else found is None
        print_json({"equal": equal, "program": found, "ledger": changes})
        return int(not equal)
    print("\n".join([*_program_lines(alone, found, changes), *(f"ledger: {line}" for line in changes)]))
    return int(bool(changes) if alone else found is not None)


def _program_lines(alone: bool, found: str | None, changes: list[str]) -> list[str]:
    if alone:
        return [] if changes else ["The ledgers are equal."]
    return [found or "The programs are equal."]


def _changes(first: str, second: str) -> list[str]:
    """What the ledgers say differently; nothing where a side has none."""
    left, right = read_ledger(first), read_ledger(second)
    if left is None or right is None:
        return []
    before, after = _by_pass(left), _by_pass(right)
    lines = []
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name, []), after.get(name, [])
        if not _alike(old, new):
            lines.append(f"{name}: {_told(old)} -> {_told(new)}")
    figures = dict.fromkeys([*left.summary.quality, *right.summary.quality])
    pairs = [(name, _figure(left, name), _figure(right, name)) for name in figures]
    return lines + [f"quality {name}: {old} -> {new}" for name, old, new in pairs if old != new]


def _by_pass(ledger: Ledger) -> dict[str, list[list[Row]]]:
    """The rows of every pass, in one list for each of its applications."""
    found: dict[str, list[list[Row]]] = {}
    for (_, name), group in groupby(ledger.rows, lambda row: (row.step, row.name)):
        found.setdefault(name, []).append(list(group))
    return found


def _alike(old: list[list[Row]], new: list[list[Row]]) -> bool:
    """True where decisions, sites and costs are the same, and gains but for their noise."""
    if [_outcome(rows) for rows in old] != [_outcome(rows) for rows in new]:
        return False
    return all(_same_gain(one[0], other[0]) for one, other in zip(old, new, strict=True))


def _same_gain(old: Row, new: Row) -> bool:
    if old.latency is None or new.latency is None:
        return old.latency is new.latency
    return abs(old.latency - new.latency) <= 2 * hypot(old.noise or 0.0, new.noise or 0.0)


def _told(applications: list[list[Row]]) -> str:
    if not applications:
        return "absent"
    return "; ".join(_outcome(rows) + _gain(rows[0]) for rows in applications)


def _outcome(rows: list[Row]) -> str:
    """What became of one application of a pass."""
    sites = sum(row.matches for row in rows)
    told = f"{rows[0].decision}, {sites} site{'' if sites == 1 else 's'}"
    return told + (f", {rows[0].spent:.3g} {rows[0].metric}" if rows[0].spent is not None else "")


def _gain(row: Row) -> str:
    return f", {row.latency * 1e6:+.1f} us" if row.latency is not None else ""


def _figure(ledger: Ledger, name: str) -> str:
    value = ledger.summary.quality.get(name)
    return "not measured" if value is None else f"{value:.4g}"
