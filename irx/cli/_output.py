"""How subcommands print: a table for people, JSON for programs."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from irx.errors import CannotWrite

PIPE_WIDTH = 200  # a pipe has no width of its own, and rich would wrap at 80


def add_json(parser: ArgumentParser, help: str = "print JSON instead of a table") -> None:
    """Give the command a --json option."""
    parser.add_argument("--json", action="store_true", help=help)


def print_json(value: Any) -> None:
    """Print plain data as indented JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def write_text(path: str, text: str) -> None:
    """Write a file. Raises CannotWrite."""
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise CannotWrite(
            f"{path} cannot be written: {error.strerror}", fix="name a file in a folder that is there"
        ) from error


def say(line: str) -> None:
    """A remark, on standard error: what standard output carries may be read by a program."""
    print(f"irx: {line}", file=sys.stderr)


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Show on standard error that this is being done, where a person is looking."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{what} ..."):
        yield


class _Said(logging.Handler):
    """Says records on standard error, with the seconds since it was made."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.start = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        say(f"{time.monotonic() - self.start:5.0f} s  {record.getMessage()}")


@contextmanager
def searching() -> Iterator[None]:
    """Say what a search finds, as it finds it."""
    logger, handler = logging.getLogger("irx.pipeline.search"), _Said()
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], as_json: bool) -> None:
    """Print rows of plain data: all of them as JSON, or the named columns as a table.

    In a table, lists are joined with commas and None is empty.
    """
    if as_json:
        print_json(list(rows))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(_cell(row[column]) for column in columns))
    Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH, highlight=False).print(table)


def _cell(value: Any) -> str:
    from rich.markup import escape

    if isinstance(value, (list, tuple)):
        value = ", ".join(str(item) for item in value)
    return "" if value is None else escape(str(value))
