"""List the passes in the order of their stages: effect, options and meaning.

examples:
  irx passes
  irx passes --stage normalize
  irx passes --json
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from irx.cli._output import add_json, print_rows
from irx.cli._pass_files import declared_passes, stages
from irx.errors import UnknownOption


def configure(parser: ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("--stage", help="only the passes of this stage")
    add_json(parser)


def run(arguments: Namespace) -> None:
    """Print the passes."""
    if arguments.stage and arguments.stage not in stages():
        raise UnknownOption(arguments.stage, stages(), where="--stage")
    rows = [row for row in declared_passes() if row["stage"] == (arguments.stage or row["stage"])]
    print_rows(rows, ("name", "stage", "effect", "options", "doc"), arguments.json)
