"""Reads types and attribute values from tokens. Nothing is ever evaluated: sizes go through `dims.parse_dim`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TypeVar

from irx.errors import nearest
from irx.ir.blocks import FORMATS
from irx.ir.codes import CODES, is_code
from irx.ir.dims import Dim, SymDim, names, parse_dim
from irx.ir.lexer import Cursor
from irx.ir.opdef import Attr, Operand
from irx.ir.types import DTYPES, WEAK, KVType, TensorType, Type, is_dtype

_T = TypeVar("_T")
_CLOSING = frozenset([",", "]", "}", ")", ""])
_WORDS: dict[str, bool | float | None] = {"true": True, "false": False, "none": None, "inf": math.inf, "nan": math.nan}
_DEEPEST = 50
_LONGEST_SIZE = 2000  # characters; keeps hostile text from exhausting the stack of the expression reader


def read_type(cursor: Cursor) -> Type:
    """The type that comes next. Raises ParseError."""
    text = cursor.expect_kind("type", "a type")
    return _guarded(cursor, cursor.at - 1, lambda: parse_type(text))


def read_value(cursor: Cursor, depth: int = 0) -> Attr:
    """The attribute value that comes next. Raises ParseError."""
    at, kind, text = cursor.at, cursor.kind, cursor.text
    if text == "[":
        return tuple(_list(cursor, depth))
    if kind == "string":
        cursor.at += 1
        return _guarded(cursor, at, lambda: str(json.loads(text)))
    if kind == "type":
        return _tensor_type(cursor)
    if kind == "symbol":
        return _region(cursor)
    if kind == "operand":
        cursor.at += 1
        return Operand(int(text[1:]))
    return read_scalar(cursor)


def _region(cursor: Cursor) -> Attr:
    """The graph of a region that was read before."""
    at = cursor.at
    text = cursor.expect_kind("symbol", "a region like @name")[1:]
    name = _guarded(cursor, at, lambda: str(json.loads(text)) if text.startswith('"') else text)
    if name not in cursor.regions:
        guess = nearest(name, list(cursor.regions))
        raise cursor.error(f"unknown region @{name}", at, fix=f"did you mean '@{guess}'?" if guess else None)
    region: Attr = cursor.regions[name]
    return region


def read_scalar(cursor: Cursor) -> bool | int | float | SymDim | None:
    """The literal or size that comes next; None for `none`. Raises ParseError."""
    at = cursor.at
    negative = cursor.text == "-" and cursor.kinds[at + 1] in ("number", "name")
    last = at + negative
    kind, text = cursor.kinds[last], cursor.texts[last]
    if kind not in ("number", "name") or cursor.texts[last + 1] not in _CLOSING:
        return _size(cursor)
    if text in _WORDS and (text == "inf" or not negative):
        cursor.at = last + 1
        return -math.inf if negative else _WORDS[text]
    if kind == "number" and not text.isdigit():
        cursor.at = last + 1
        return -float(text) if negative else float(text)
    return _size(cursor)


def _list(cursor: Cursor, depth: int) -> Iterator[Attr]:
    if depth > _DEEPEST:
        raise cursor.error(f"lists are nested more than {_DEEPEST} deep")
    cursor.expect("[")
    while not cursor.take("]"):
        yield read_value(cursor, depth + 1)
        if not cursor.take(","):
            cursor.expect("]")
            return


def _tensor_type(cursor: Cursor) -> TensorType:
    at = cursor.at
    found = read_type(cursor)
    if not isinstance(found, TensorType):
        raise cursor.error("an attribute cannot be a KV type", at)
    return found


def _size(cursor: Cursor) -> Dim:
    """A size expression: all tokens up to the comma or bracket that ends it."""
    at, depth = cursor.at, 0
    while depth > 0 or cursor.text not in _CLOSING:
        if cursor.kind == "end":
            break
        depth += (cursor.text == "(") - (cursor.text == ")")
        cursor.at += 1
    if cursor.at == at:
        raise cursor.error(f"expected a value, found {cursor.found()}")
    last = cursor.at - 1
    text = cursor.source[cursor.starts[at] : cursor.starts[last] + len(cursor.texts[last])]
    return _guarded(cursor, at, lambda: _dim(text))


def _guarded(cursor: Cursor, at: int, read: Callable[[], _T]) -> _T:
    try:
        return read()
    except ValueError as error:
        raise cursor.error(str(error), at) from None


@lru_cache(maxsize=65536)
def parse_type(text: str) -> Type:
    """The type that `str(type)` wrote. Raises ValueError."""
    if text.startswith("kv<"):
        return _kv_type(text[3:-1])
    dtype, bracket, rest = text.partition("[")
    if not is_dtype(dtype):
        guess = nearest(dtype, [*DTYPES, *WEAK, *FORMATS])
        raise ValueError(f"unknown dtype {dtype!r}" + (f"; did you mean {guess!r}?" if guess else ""))
    if not bracket or not rest.endswith("]"):
        raise ValueError(f"not a type: {text!r}")
    return TensorType(tuple(map(_extent, _split(rest[:-1]))), dtype)


_KV_FIELDS = (
    "heads",
    "value_heads",
    "dim",
    "k_dim",
    "v_dim",
    "cap",
    "shared_with",
    "code",
    "kept",
    "prefix",
    "window",
    "sinks",
    "page",
    "pages",
)


def _kv_type(text: str) -> KVType:
    parts = [part.strip() for part in _split(text)]
    plain = [part for part in parts if "=" not in part]
    fields = dict(part.split("=", 1) for part in parts if "=" in part)
    unknown = sorted(fields.keys() - set(_KV_FIELDS))
    if unknown or len(plain) != 2 or len(plain) + len(fields) != len(parts):
        raise ValueError(f"a KV type is kv<heads=, dim=, layout, dtype, cap=>, not kv<{text}>")
    layout, dtype = plain
    if not is_dtype(dtype):
        raise ValueError(f"unknown dtype {dtype!r}")
    heads, k_dim = _count(fields, "heads"), _count(fields, "dim" if "dim" in fields else "k_dim")
    value_heads = _count(fields, "value_heads") if "value_heads" in fields else heads
    v_dim = _count(fields, "v_dim") if "v_dim" in fields else k_dim
    capacity = _extent(fields["cap"]) if "cap" in fields else None
    code = fields.get("code")
    if code is not None and not is_code(code):
        raise ValueError(f"unknown code {code!r} of a KV type; there are {', '.join(CODES)} and kivi2-32-128")
    kept = _share(fields["kept"]) if "kept" in fields else None
    prefix = fields.get("prefix")
    if prefix not in (None, "shared"):
        raise ValueError(f"the prefix of a KV type is shared, not {prefix!r}")
    other = fields.get("shared_with")
    window = _count(fields, "window") if "window" in fields else None
    sinks = _count(fields, "sinks") if "sinks" in fields else 0
    if window == 0 or (sinks and window is None):
        raise ValueError("a KV type has a window of 1 at least, and sinks beside it alone")
    page, pages = (_count(fields, name) if name in fields else None for name in ("page", "pages"))
    if page == 0 or pages == 0 or (pages is not None and page is None):
        raise ValueError("a KV type has pages of 1 slot at least, and their number beside that alone")
    sizes = (heads, value_heads, k_dim, v_dim)
    return KVType(*sizes, dtype, layout, capacity, other, code, kept, prefix is not None, window, sinks, page, pages)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise ValueError(f"a KV type keeps a share above 0 and up to 1, not {text!r}")
    return share


def _count(fields: dict[str, str], name: str) -> int:
    text = fields.get(name, "")
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"a KV type needs a whole number for {name!r}, not {text!r}")
    return int(text)


def _extent(text: str) -> Dim:
    dim = _dim(text.strip())
    if isinstance(dim, int) and dim < 0:
        raise ValueError(f"a size cannot be negative: {dim}")
    return dim


def _dim(text: str) -> Dim:
    if len(text) > _LONGEST_SIZE:
        raise ValueError(f"a size expression of more than {_LONGEST_SIZE} characters")
    try:
        dim = parse_dim(text)
    except (ArithmeticError, RecursionError, MemoryError, TypeError, ValueError) as error:
        raise ValueError(f"not a size: {text[:80]!r}") from error
    if isinstance(dim, SymDim) and not names(dim):
        raise ValueError(f"not a whole number: {text[:80]!r}")
    return dim


def _split(text: str) -> list[str]:
    """Parts between the commas that are outside all parentheses; none for blank text."""
    parts, depth, start = [], 0, 0
    for position, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]] if text.strip() else []
