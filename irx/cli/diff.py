"""Say where two programs first differ, and how their ledgers do.

Each side is a program in text form or a saved artifact. Names of values, locations and the order of independent nodes
do not count; types, operations and attributes do. The status is 1 when the programs differ.

examples:
  irx diff before.irx after.irx
  irx diff first-artifact second-artifact
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from irx.cli._output import add_json, print_json
from irx.errors import ModelNotFound

if TYPE_CHECKING:
    from irx.ir.program import Program
    from irx.ledger import Ledger

_PROGRAM = "program.irx"
_LEDGER = "ledger.json"


def configure(parser: ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("first", help="a .irx file or an artifact")
    parser.add_argument("second", help="a .irx file or an artifact")
    add_json(parser)


def run(arguments: Namespace) -> int:
    """Print the differences; 1 when there are any in the programs."""
    from irx.ir.equal import difference

    found = difference(_program(arguments.first), _program(arguments.second))
    decisions = _decisions(arguments.first, arguments.second)
    if arguments.json:
        print_json({"program": found, "ledger": decisions})
    else:
        print(found or "The programs are equal.")
        for line in decisions:
            print(line)
    return int(found is not None)


def _program(name: str) -> Program:
    import irx.ops  # noqa: F401  (declares the operations that the text names)
    from irx.ir.parser import parse

    path = Path(name) / _PROGRAM if Path(name).is_dir() else Path(name)
    if not path.is_file():
        raise ModelNotFound(f"there is no program at {path}", fix="name a .irx file or a saved artifact")
    return parse(path.read_text(encoding="utf-8"), file=str(path))


def _decisions(first: str, second: str) -> list[str]:
    """Passes that were decided differently; nothing where a side has no ledger."""
    sides = [_ledger(first), _ledger(second)]
    if None in sides:
        return []
    before, after = ({row.name: row for row in ledger.rows} for ledger in sides if ledger is not None)
    lines = []
    for name in dict.fromkeys([*before, *after]):
        left, right = (_decision(rows.get(name)) for rows in (before, after))
        if left != right:
            lines.append(f"{name}: {left} -> {right}")
    return lines


def _decision(row: object) -> str:
    return "absent" if row is None else f"{row.decision}, {row.matches} sites"  # type: ignore[attr-defined]


def _ledger(name: str) -> Ledger | None:
    from irx.ledger import Ledger

    path = Path(name) / _LEDGER
    return Ledger.from_json(path.read_text(encoding="utf-8")) if path.is_file() else None
