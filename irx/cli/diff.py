"""Say where two programs first differ, and how their ledgers do.

Each side is a program in text form or a saved artifact; - is standard input. Names of values, locations and the order
of independent nodes do not count; types, operations and attributes do. The status is 1 when the programs differ.

examples:
  irx diff before.irx after.irx
  irx diff first-artifact second-artifact
  irx opt model.irx -p raise-norm | irx diff model.irx -
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from irx.cli._output import add_json, print_json
from irx.cli._programs import LEDGER, read_program

if TYPE_CHECKING:
    from irx.ledger import Ledger


def configure(parser: ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("first", help="a .irx file, a saved artifact, or - for standard input")
    parser.add_argument("second", help="the same")
    add_json(parser, "print JSON instead of text")


def run(arguments: Namespace) -> int:
    """Print the differences; 1 when there are any in the programs."""
    from irx.ir.equal import difference

    found = difference(read_program(arguments.first), read_program(arguments.second))
    decisions = _decisions(arguments.first, arguments.second)
    if arguments.json:
        print_json({"equal": found is None, "program": found, "ledger": decisions})
    else:
        print(found or "The programs are equal.")
        for line in decisions:
            print(f"ledger: {line}")
    return int(found is not None)


def _decisions(first: str, second: str) -> list[str]:
    """Passes that were decided differently; nothing where a side has no ledger."""
    left, right = _ledger(first), _ledger(second)
    if left is None or right is None:
        return []
    before, after = _by_pass(left), _by_pass(right)
    names = dict.fromkeys([*before, *after])
    pairs = ((name, before.get(name, "absent"), after.get(name, "absent")) for name in names)
    return [f"{name}: {old} -> {new}" for name, old, new in pairs if old != new]


def _by_pass(ledger: Ledger) -> dict[str, str]:
    """What became of every pass, of each of its applications where there are several."""
    found: dict[str, list[str]] = {}
    for (_, name), group in groupby(ledger.rows, lambda row: (row.step, row.name)):
        rows = list(group)
        sites = sum(row.matches for row in rows)
        found.setdefault(name, []).append(f"{rows[0].decision}, {sites} site{'' if sites == 1 else 's'}")
    return {name: "; ".join(applications) for name, applications in found.items()}


def _ledger(name: str) -> Ledger | None:
    from irx.ledger import Ledger

    path = Path(name) / LEDGER
    return Ledger.from_json(path.read_text(encoding="utf-8")) if path.is_file() else None
