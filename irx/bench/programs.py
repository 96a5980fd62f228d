"""Programs that the bench ships as text, with seeded random weights: shapes of models, for their speed alone.

They need no file, network, transformers or gguf, so that a machine with a GPU measures them as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from irx.errors import UnknownOption

if TYPE_CHECKING:
    from irx.ir.program import Program

FOLDER = Path(__file__).parent / "shapes"


def shapes() -> list[str]:
    """Names of the programs."""
    return sorted(path.stem for path in FOLDER.glob("*.irx"))


def shape(name: str, seed: int = 0) -> Program:
    """A program with random weights, that of a file's text or of a shipped name. Raises UnknownOption."""
    from irx.analysis.random_weights import bind_declared
    from irx.frontends.text import capture

    path = Path(name)
    if path.suffix != ".irx":
        if name not in shapes():
            raise UnknownOption(name, shapes(), where="the program")
        path = FOLDER / f"{name}.irx"
    program = capture(path)
    bind_declared(program, seed)
    return program
