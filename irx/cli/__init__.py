"""The `irx` command: finds subcommands from the files beside this one, and runs the one that was asked for.

A subcommand is one file, named as the command. Its docstring is its help: the first line is the summary in
`irx --help`, the rest stands under the options in `irx COMMAND --help`. It defines `configure(parser)`, which adds its
arguments, and `run(arguments)`, which returns the exit status or None for 0. Only the file of the command in use is
imported, and heavy imports belong inside `run`. Files that start with an underscore are shared by commands.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from irx.errors import IRXError, UnknownCommand

USER_ERROR = 2
INTERRUPTED = 130
PIPE_CLOSED = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run `irx` with these words, those of the process by default; returns the exit status.

    What a user can cause is printed as one message; with IRX_DEBUG at 1 or more, it is raised with its traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader, `head` for one, has seen enough; the interpreter must not complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except (IRXError, OSError) as error:
        # An OSError that names a file is the user's to mend: a full disk, a folder without permission.
        if os.environ.get("IRX_DEBUG", "0") not in ("", "0") or getattr(error, "filename", "") is None:
            raise
        print(f"irx: {error}", file=sys.stderr)
        return USER_ERROR


def commands() -> dict[str, Path]:
    """The file of every subcommand, by name."""
    files = Path(__file__).parent.glob("[!_]*.py")
    return {path.stem.replace("_", "-"): path for path in sorted(files)}


def summary(path: Path) -> str:
    """The first line of a file's docstring, read without importing it."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        from irx import __version__

        print(f"irx {__version__}")
        return 0
    return _run(words[0], words[1:])


def _overview() -> str:
    known = commands()
    width = max(len(name) for name in known)
    lines = [f"  {name:{width}}  {summary(path)}" for name, path in known.items()]
    head = "usage: irx COMMAND ...\n\nAn optimizing compiler for transformer inference.\n\ncommands:\n"
    return (
        head
        + "\n".join(lines)
        + "\n\n`irx COMMAND --help` shows its options and examples; `irx --version` the version."
    )


def _run(name: str, words: list[str]) -> int:
    if name not in commands():
        raise UnknownCommand(name, commands())
    import argparse

    module = import_module(f"irx.cli.{name.replace('-', '_')}")
    first, _, rest = (module.__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog=f"irx {name}",
        description=first,
        epilog=rest.strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.configure(parser)
    return int(module.run(parser.parse_args(words)) or 0)
