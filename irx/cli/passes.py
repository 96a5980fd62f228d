"""List the passes in the order of their stages: effect, options and meaning.

Of passes that change the function, --lossy shows the paper, what their loss is measured by, and what they exclude.

examples:
  irx passes
  irx passes --stage normalize
  irx passes --lossy
  irx passes --json
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from irx.cli._output import add_json, print_rows
from irx.cli._pass_files import declared_passes, stages
from irx.errors import UnknownOption

LOSSY = ("name", "stage", "doc", "paper", "measure", "conflicts", "requires")


def configure(parser: ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("--stage", help="only the passes of this stage")
    parser.add_argument(
        "--lossy", action="store_true", help="those that change the function: paper, measure, conflicts"
    )
    add_json(parser)


def run(arguments: Namespace) -> None:
    """Print the passes."""
    if arguments.stage and arguments.stage not in stages():
        raise UnknownOption(arguments.stage, stages(), where="--stage")
    rows = [row for row in declared_passes() if row["stage"] == (arguments.stage or row["stage"])]
    if arguments.lossy:
        rows = [row for row in rows if row["effect"] == "lossy"]
    columns = LOSSY if arguments.lossy else ("name", "stage", "effect", "options", "doc")
    print_rows(rows, columns, arguments.json)
