"""Compile a model, print its ledger, and save it as an artifact that loads without the compiler.

MODEL is a GGUF file, a Hugging Face folder, or a program in IRX's text form that has no weights: a text carries none.

examples:
  irx compile model.gguf -o model.irx
  irx compile path/to/folder -o model.irx --target cpu --max-length 4096
  irx compile model.gguf -p "default | fold-constants" --strict
  irx compile model.gguf --json
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from irx.cli._output import add_json, progress
from irx.errors import CannotWrite

if TYPE_CHECKING:
    from irx.runtime.executable import Executable


def configure(parser: ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("model", help="a GGUF file, a Hugging Face folder, or a .irx program")
    parser.add_argument("-o", "--output", help="folder to save the artifact in; nothing is saved without it")
    parser.add_argument("--target", default="host", help="device or backend:device (default: this machine)")
    parser.add_argument("-p", "--pipeline", default="default", help="a preset or pipeline text (default: default)")
    parser.add_argument("--max-length", type=int, help="longest sequence; the model's own by default")
    parser.add_argument("--max-batch", type=int, default=16, help="most rows of a batch (default 16)")
    parser.add_argument("--strict", action="store_true", help="a refused pass is an error")
    add_json(parser, "print the ledger as JSON instead of a table")


def run(arguments: Namespace) -> None:
    """Compile, print, save."""
    if arguments.output:
        _require_place(Path(arguments.output))
    fast = _compiled(arguments)
    ledger = fast.ledger()
    print(ledger.to_json() if arguments.json else ledger)
    if arguments.output:
        fast.save(arguments.output)
        if not arguments.json:
            print(f"\nSaved in {arguments.output}.")


def _compiled(arguments: Namespace) -> Executable:
    import irx

    with progress(f"Compiling {arguments.model}"):
        return irx.compile(
            arguments.model,
            target=arguments.target,
            pipeline=arguments.pipeline,
            max_length=arguments.max_length,
            max_batch=arguments.max_batch,
            strict=arguments.strict,
        )


def _require_place(path: Path) -> None:
    """Compiling takes long: what would fail at its end is said before it starts."""
    if path.exists() and not (path / "manifest.json").is_file():
        raise CannotWrite(f"{path} exists and is no artifact of IRX", fix="name another folder")
    if not path.absolute().parent.is_dir():
        raise CannotWrite(f"{path.parent} is no folder", fix="make it, or name another one")
