"""Reading programs in text form and ledgers, for the commands that take them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from irx.errors import ModelNotFound, NotAModule

if TYPE_CHECKING:
    from irx.ir.program import Program
    from irx.ledger import Ledger

PROGRAM = "program.irx"
LEDGER = "ledger.json"
JSON = ".json"
PIPE = "-"


def read_program(name: str) -> Program:
    """The program in a text file, in a saved artifact, or, for `-`, on standard input.

    Raises ModelNotFound where there is nothing to read, NotAModule for another kind of model, ParseError.
    """
    import irx.ops  # noqa: F401  (declares the operations that the text names)
    from irx.ir.parser import parse

    if name == PIPE:
        return parse(sys.stdin.read(), "<stdin>")
    path = Path(name) / PROGRAM if Path(name).is_dir() else Path(name)
    if not path.is_file():
        raise ModelNotFound(f"there is no program at {path}", fix="name a .irx file or a saved artifact")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise NotAModule(f"{path} is no text", fix="this command takes programs in IRX's text form") from error
    return parse(text, str(path))


def read_ledger(name: str) -> Ledger | None:
    """The ledger of a saved artifact, or in a `.json` file; None where there is none. Raises DamagedFile."""
    from irx.ledger import Ledger

    path = Path(name) if Path(name).suffix == JSON else Path(name) / LEDGER
    return Ledger.from_json(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_plan(name: str) -> str:
    """The pipeline that a ledger says was kept. Raises ModelNotFound where it says nothing, DamagedFile."""
    ledger = read_ledger(name)
    if ledger is None or not ledger.summary.plan:
        raise ModelNotFound(
            f"{name} holds no plan", fix="name a saved artifact, or a .json file of what `irx compile --json` printed"
        )
    return ledger.summary.plan
