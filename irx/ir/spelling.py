"""How names, attribute values and locations are spelled in the text form, and how a location is read back.

Names that are plain words are printed bare and any other quoted as in JSON, so that no name is impossible.
"""

from __future__ import annotations

import json
import math
import re
from functools import lru_cache
from typing import Any

from irx.ir.dims import SymDim
from irx.ir.graph import Graph, Literal, Loc, Value, Weight
from irx.ir.lexer import STRING
from irx.ir.opdef import Operand
from irx.ir.types import TensorType

_WORD = re.compile(r"(?!\d)\w[\w.]*")
_SYMBOL = re.compile(r"[\w.-]+")
_WEIGHT = re.compile(r"\w[\w.]*")

RESERVED = frozenset(
    {"true", "false", "none", "inf", "nan", "floor", "ceiling", "Max", "Min", "Mod", "in", "hint", "return", "kv"}
)
"""Words that mean something where a size may stand, so that no size can have such a name."""


def format_word(name: str) -> str:
    """The name of a graph's result."""
    return name if _WORD.fullmatch(name) else json.dumps(name)


def format_symbol(name: str) -> str:
    """The name of a program or graph, `@` included."""
    return "@" + (name if _SYMBOL.fullmatch(name) else json.dumps(name))


def format_weight(name: str) -> str:
    """The name of a weight, `$` included."""
    return "$" + (name if _WEIGHT.fullmatch(name) else json.dumps(name))


def unquote(text: str) -> str:
    """The name that one of the functions above wrote, after its leading mark. Raises ValueError for a bad escape."""
    return str(json.loads(text)) if text.startswith('"') else text


def format_operand(value: Value | None) -> str:
    """`%x`, `$weight`, a bare scalar or size, or `none`."""
    if isinstance(value, Weight):
        return format_weight(value.name)
    if isinstance(value, Literal):
        return format_value(value.value)
    return "none" if value is None else f"%{value.name}"


def format_value(value: Any) -> str:
    """An attribute. Raises TypeError for anything that is not plain data: see `Attr`."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    kind = type(value)
    if kind is float:
        return _float(value)
    if kind is int or kind in (SymDim, TensorType):
        return str(value)
    if kind is str:
        return json.dumps(value)
    if kind is tuple:
        return f"[{', '.join(map(format_value, value))}]"
    if kind is Graph:
        return format_symbol(value.name)
    if kind is Operand:
        return f"#{value.index}"
    raise TypeError(f"{value!r} of type {kind.__name__} cannot be an attribute")


def _float(value: float) -> str:
    return repr(value) if math.isfinite(value) else {math.inf: "inf", -math.inf: "-inf"}.get(value, "nan")


# --- locations: `module.path @ file.py:12 | fuse-norm, cse` -----------------------------------------------------------

_PLAIN = re.compile(r'[^\s@|,"](?:[^@|,"\r\n]*[^\s@|,"])?')
_PIECE = re.compile(rf'{STRING}|[@|,]|[^@|,"]+|"')


@lru_cache(maxsize=65536)
def format_loc(loc: Loc) -> str:
    """What stands behind `//`; empty for a location that says nothing."""
    parts = [_field(loc.module)] if loc.module else []
    parts += [f"@ {_field(loc.line)}"] if loc.line else []
    parts += [f"| {', '.join(map(_field, loc.passes))}"] if loc.passes else []
    return " ".join(parts)


@lru_cache(maxsize=65536)
def parse_loc(comment: str) -> Loc:
    """The location that a comment (with its `//`) spells; any other remark is taken as the module."""
    text = comment.removeprefix("//").strip()
    return _read_loc([piece.strip() for piece in _PIECE.findall(text)]) or Loc(module=text)


def _read_loc(pieces: list[str]) -> Loc | None:
    fields: dict[str, list[str]] = {"module": [], "line": [], "passes": []}
    slot = "module"
    for piece in filter(None, pieces):
        if piece in ("@", "|"):
            slot = {"@": "line", "|": "passes"}[piece]
        elif piece == ",":
            if slot != "passes":
                return None
        elif piece == '"' or (fields[slot] and slot != "passes"):
            return None
        else:
            fields[slot].append(piece)
    try:
        module, line = (unquote("".join(fields[name])) for name in ("module", "line"))
        return Loc(module, line, tuple(map(unquote, fields["passes"])))
    except ValueError:
        return None


def _field(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
