"""Reading programs in text form, for the commands that take them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from irx.errors import ModelNotFound, NotAModule

if TYPE_CHECKING:
    from irx.ir.program import Program

PROGRAM = "program.irx"
LEDGER = "ledger.json"
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
