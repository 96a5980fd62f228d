"""The text of a pipeline, `remove-noops | kv-quantize{bits=4, scheme="kivi"}`, as names and plain values.

Words need no quotes, and lists of them no brackets: `skip=head,embed` is `skip=["head", "embed"]`.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TypeAlias

from irx.errors import ParseError

Value: TypeAlias = "None | bool | int | float | str | tuple[Value, ...]"

_TOKEN = re.compile(
    r"""(?P<string>"(?:[^"\\\n]|\\.)*")
      | (?P<number>-?(?:[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|inf\b)(?![\w.-]))
      | (?P<word>\w[\w.-]*)
      | (?P<mark>[|{}\[\],=])
      | (?P<bad>\S)""",
    re.VERBOSE,
)
_WORDS: dict[str, Value] = {"true": True, "false": False, "none": None, "nan": math.nan}


@dataclass(frozen=True)
class Item:
    """One name with its options, as they are written: `_` in option names for `-`."""

    name: str
    options: dict[str, Value]


def read_items(text: str) -> list[Item]:
    """The items between the bars; none for blank text. Raises ParseError with the column."""
    reader = _Reader(text)
    if reader.text == "":
        return []
    items = [reader.item()]
    while reader.take("|"):
        items.append(reader.item())
    if reader.text:
        raise reader.error(f"expected '|', found {reader.text!r}")
    return items


def format_value(value: Value) -> str:
    """An option's value as `read_items` reads it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(format_value, value))}]"
    return json.dumps(value) if isinstance(value, str) else repr(value)


class _Reader:
    def __init__(self, source: str) -> None:
        self.source = source
        matches = list(_TOKEN.finditer(source))
        self.kinds = [match.lastgroup or "bad" for match in matches] + ["end"]
        self.texts = [match.group() for match in matches] + [""]
        self.starts = [match.start() for match in matches] + [len(source)]
        self.at = 0

    @property
    def text(self) -> str:
        return self.texts[self.at]

    def item(self) -> Item:
        name = self._expect("word", "the name of a pass")
        options: dict[str, Value] = {}
        if not self.take("{"):
            return Item(name, options)
        while not self.take("}"):
            option = self._expect("word", "an option").replace("-", "_")
            if option in options:
                raise self.error(f"option {option!r} is given twice", self.at - 1)
            self._require("=")
            options[option] = self._values()
            if not self.take(","):
                self._require("}")
                break
        return Item(name, options)

    def take(self, mark: str) -> bool:
        found = self.kinds[self.at] == "mark" and self.text == mark
        self.at += found
        return found

    def _values(self) -> Value:
        """A value, or several with commas between them, which are a list without its brackets: `skip=head,embed`."""
        values = [self._value()]
        while self.text == "," and self._is_plain_value():
            self.at += 1
            values.append(self._value())
        return values[0] if len(values) == 1 else tuple(values)

    def _is_plain_value(self) -> bool:
        """True where what follows the comma is a value and not the name of the next option."""
        return self.kinds[self.at + 1] in ("string", "number", "word") and self.texts[self.at + 2] not in ("=", "")

    def _value(self) -> Value:
        if self.take("["):
            return tuple(self._list())
        kind, text = self.kinds[self.at], self.text
        if kind not in ("string", "number", "word"):
            raise self.error(f"expected a value, found {text or 'the end'!r}")
        self.at += 1
        if kind == "number":
            return int(text) if re.fullmatch(r"-?[0-9]{1,4000}", text) else float(text)
        if kind == "word":
            return _WORDS.get(text, text)
        try:
            return str(json.loads(text))
        except ValueError as error:
            raise self.error(f"bad string: {error}", self.at - 1) from None

    def _list(self) -> list[Value]:
        values: list[Value] = []
        while not self.take("]"):
            if self.text == "[":
                raise self.error("a list cannot hold lists")
            values.append(self._value())
            if not self.take(","):
                self._require("]")
                break
        return values

    def _expect(self, kind: str, what: str) -> str:
        if self.kinds[self.at] != kind:
            raise self.error(f"expected {what}, found {self.text or 'the end'!r}")
        self.at += 1
        return self.texts[self.at - 1]

    def _require(self, mark: str) -> None:
        if not self.take(mark):
            raise self.error(f"expected {mark!r}, found {self.text or 'the end'!r}")

    def error(self, what: str, at: int | None = None) -> ParseError:
        offset = self.starts[self.at if at is None else at]
        line = self.source.count("\n", 0, offset) + 1
        begin = self.source.rfind("\n", 0, offset) + 1
        source = self.source[begin:].partition("\n")[0]
        return ParseError(what, line=line, column=offset - begin + 1, source=source, file="<pipeline>")
