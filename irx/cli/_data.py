"""What the command line says of texts and of a budget, as `irx.compile` takes it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irx.errors import BadData, BudgetError

if TYPE_CHECKING:
    from irx.budget import Budget

_LISTS = (".json", ".jsonl")


def texts(paths: Sequence[str]) -> list[str]:
    """The texts of files: a `.json` holds a list of them, a `.jsonl` one a line, any other file is one text.

    Raises BadData for a file that cannot be read or holds something else.
    """
    return [text for path in paths for text in _texts(Path(path))]


def budget(words: Sequence[str]) -> Budget:
    """`kl=0.05 top1=0.95`, also with commas, as a Budget. Raises BudgetError."""
    from irx.budget import Budget

    limits: dict[str, Any] = {}
    for word in (part for piece in words for part in piece.split(",") if part):
        name, mark, value = word.partition("=")
        if not mark or name not in _names():
            raise BudgetError(f"--budget {word} is no limit", fix=f"NAME=NUMBER, NAME one of {', '.join(_names())}")
        limits[name] = _number(word, value)
    return Budget(**limits)


def minutes(word: str) -> float:
    """`20`, `20m`, `90s` or `1h` in minutes. Raises ValueError, which argparse tells."""
    units = {"s": 1 / 60, "m": 1.0, "h": 60.0}
    return float(word[:-1]) * units[word[-1]] if word[-1:] in units else float(word)


def _names() -> list[str]:
    """The limits that are plain numbers of their own."""
    from irx.budget import Budget

    return [field.name for field in fields(Budget) if field.name not in ("metric", "max")]


def _number(word: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise BudgetError(f"--budget {word} is no limit: {value!r} is no number", fix="kl=0.05, for example") from None


def _texts(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(f"{path} cannot be read as text: {error}", fix="name a text file in UTF-8") from error
    if path.suffix not in _LISTS:
        yield text
        return
    try:
        found = (
            [json.loads(line) for line in text.splitlines() if line] if path.suffix == ".jsonl" else json.loads(text)
        )
    except ValueError as error:
        raise BadData(f"{path} is no JSON: {error}") from error
    for item in found if isinstance(found, list) else [found]:
        item = item.get("text") if isinstance(item, dict) else item
        if not isinstance(item, str):
            raise BadData(f"{path} holds more than texts", fix='a list of strings, or of objects with a "text"')
        yield item
