"""Programs in the text form: a `.irx` file, or the text itself."""

from __future__ import annotations

from pathlib import Path

import irx.ops  # noqa: F401  (declares the operations that a text may name)
from irx.errors import ModelNotFound
from irx.ir.parser import parse as parse  # also the public name: unlike the parser itself, it knows the ops
from irx.ir.program import Program

SUFFIX = ".irx"


def capture(source: str | Path) -> Program:
    """The program in a file (a path, or a string ending in `.irx`) or in a text.

    Its weights have no arrays: bind them with `Weights.bind`. Raises ModelNotFound for a missing file, ParseError for
    text that does not parse.
    """
    if not is_path(source):
        return parse(str(source))
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelNotFound(f"{path} cannot be read: {error}", fix="pass the path of a text file of IRX") from error
    return parse(text, str(path))


def is_path(source: str | Path) -> bool:
    """True for a path; a string with a line break or a brace is a text."""
    return isinstance(source, Path) or (source.endswith(SUFFIX) and not set("{\n") & set(source))
