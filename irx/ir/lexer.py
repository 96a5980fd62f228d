"""Cuts the text form into tokens, and walks over them.

Whole types (`bf16[B, 1, 576]`, `kv<heads=3, ...>`) are single tokens: there are few different ones in a program, so the
parser reads each spelling once. Comments are kept aside, because the one behind a statement is the node's location.
"""

from __future__ import annotations

import re
from typing import Any

from irx.errors import ParseError

STRING = r'"(?:[^"\\\n]|\\.)*"'
_TOKEN = re.compile(
    rf"""
      (?P<comment> //[^\n]* )
    | (?P<string> {STRING} )
    | (?P<value> %\w+ )
    | (?P<weight> \$(?: \w[\w.]* | {STRING} ) )
    | (?P<symbol> @(?: [\w.-]+ | {STRING} ) )
    | (?P<type> kv<[^<>\n]*> | (?!\d|in\[)\w+\[[^\[\]\n]*\] )
    | (?P<number> [0-9]+ (?:\.[0-9]*)? (?:[eE][+-]?[0-9]+)? )
    | (?P<name> (?!\d)\w[\w.]* )
    | (?P<operand> \#[0-9]+ )
    | (?P<mark> -> | \*\* | [(){{}}\[\],:=*/+-] )
    | (?P<bad> \S )
    """,
    re.VERBOSE,
)


class Cursor:
    """The tokens of one text and the place reached: token `i` has a kind, its text, and where it starts.

    The last token is of kind `end` and empty, so looking ahead by one is always possible.
    """

    __slots__ = ("at", "comments", "file", "kinds", "regions", "source", "starts", "texts")

    def __init__(self, source: str, file: str = "<text>") -> None:
        self.source = source
        self.file = file
        self.kinds: list[str] = []
        self.texts: list[str] = []
        self.starts: list[int] = []
        self.comments: dict[int, str] = {}  # by the token that follows; only those that share the line of one before
        self.regions: dict[str, Any] = {}  # graphs that `@name` in attributes stands for, as read so far
        self.at = 0
        self._tokenize()

    @property
    def text(self) -> str:
        """The next token's text."""
        return self.texts[self.at]

    @property
    def kind(self) -> str:
        """The next token's kind."""
        return self.kinds[self.at]

    def take(self, text: str) -> bool:
        """Step over the next token if it is `text`."""
        if self.texts[self.at] != text:
            return False
        self.at += 1
        return True

    def expect(self, text: str) -> None:
        """Step over the next token, which must be `text`. Raises ParseError."""
        if self.texts[self.at] != text:
            raise self.error(f"expected {text!r}, found {self.found()}")
        self.at += 1

    def expect_kind(self, kind: str, what: str) -> str:
        """Step over the next token, which must be of that kind, and return it. Raises ParseError asking for `what`."""
        if self.kinds[self.at] != kind:
            raise self.error(f"expected {what}, found {self.found()}")
        self.at += 1
        return self.texts[self.at - 1]

    def found(self) -> str:
        """The next token as an error message names it."""
        return "the end of the text" if self.kind == "end" else repr(self.text)

    def error(self, what: str, at: int | None = None, *, fix: str | None = None) -> ParseError:
        """An error at token `at`, the next one unless given."""
        return self.error_at(self.starts[self.at if at is None else at], what, fix)

    def error_at(self, offset: int, what: str, fix: str | None = None) -> ParseError:
        """An error at a character of the text."""
        begin = self.source.rfind("\n", 0, offset) + 1
        end = self.source.find("\n", offset)
        line = self.source[begin : end if end >= 0 else len(self.source)]
        number = self.source.count("\n", 0, offset) + 1
        return ParseError(what, line=number, column=offset - begin + 1, source=line, file=self.file, fix=fix)

    def _tokenize(self) -> None:
        kinds, texts, starts = self.kinds, self.texts, self.starts
        for match in _TOKEN.finditer(self.source):
            kind = match.lastgroup or "bad"
            if kind == "comment":
                self._comment(match)
                continue
            if kind == "bad":
                raise self._unreadable(match)
            kinds.append(kind)
            texts.append(match.group())
            starts.append(match.start())
        kinds.append("end")
        texts.append("")
        starts.append(len(self.source))

    def _comment(self, match: re.Match[str]) -> None:
        last = self.starts[-1] + len(self.texts[-1]) if self.starts else 0
        if self.starts and "\n" not in self.source[last : match.start()]:
            self.comments[len(self.starts)] = match.group()

    def _unreadable(self, match: re.Match[str]) -> ParseError:
        letter = match.group()
        what = "this string does not end on its line" if letter == '"' else f"unexpected character {letter!r}"
        return self.error_at(match.start(), what)
