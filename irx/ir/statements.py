"""Reads one application of an op, `irx.linear(%x, $w) {attribute=value}`, and the types behind a colon."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from irx.errors import IRXError, TypeRuleError, UnknownOp, nearest
from irx.ir.graph import Value
from irx.ir.inference import Inference
from irx.ir.lexer import Cursor
from irx.ir.opdef import Attr, OpDef, lookup, registry
from irx.ir.types import Type
from irx.ir.values import read_type, read_value


@dataclass(slots=True)
class Application:
    """An op applied to operands, with the types that its rule gives; `at` is the token of the op's name."""

    op: type[OpDef]
    inputs: list[Value | None]
    attrs: dict[str, Attr]
    types: tuple[Type, ...]
    at: int

    def check(self, cursor: Cursor, stated: Sequence[Type], at: int) -> None:
        """The types in the text must be the inferred ones. Raises ParseError at token `at`, where they begin."""
        if tuple(stated) != self.types:
            raise cursor.error(
                f"{self.op.qualified()} gives {_list(self.types)}, but the text says {_list(stated)}", at
            )


def read_application(cursor: Cursor, operand: Callable[[], Value | None], inference: Inference) -> Application:
    """`op(operands) {attributes}`; `operand` reads one operand. Raises ParseError, for ill-typed ones too."""
    at = cursor.at
    op = _op(cursor)
    inputs = _operands(cursor, operand)
    attrs = _attributes(cursor, op) if cursor.text == "{" else {}
    try:
        types = inference.types(op, [v.type if v is not None else None for v in inputs], attrs)
    except IRXError as error:
        what = error.what if isinstance(error, TypeRuleError) else str(error)
        raise cursor.error(what, at, fix=error.fix) from error
    return Application(op, inputs, attrs, types, at)


def read_types(cursor: Cursor, count: int) -> list[Type]:
    """`type`, or `(type, type)` where there are none or several. Raises ParseError unless there are `count`."""
    at = cursor.at
    if not cursor.take("("):
        found = [read_type(cursor)]
    else:
        found = []
        while not cursor.take(")"):
            found.append(read_type(cursor))
            if not cursor.take(","):
                cursor.expect(")")
                break
    if len(found) != count:
        raise cursor.error(f"expected {count} types, found {len(found)}", at)
    return found


def _op(cursor: Cursor) -> type[OpDef]:
    name = cursor.expect_kind("name", "an op")
    try:
        return lookup(name)
    except UnknownOp:
        known = {op.qualified() for op in registry().values()}
        raise cursor.error(f"unknown op {name!r}", cursor.at - 1, fix=guess(nearest(name, known))) from None


def _operands(cursor: Cursor, operand: Callable[[], Value | None]) -> list[Value | None]:
    cursor.expect("(")
    values: list[Value | None] = []
    while not cursor.take(")"):
        values.append(operand())
        if not cursor.take(","):
            cursor.expect(")")
            break
    return values


def _attributes(cursor: Cursor, op: type[OpDef]) -> dict[str, Attr]:
    cursor.expect("{")
    attrs: dict[str, Attr] = {}
    while not cursor.take("}"):
        at = cursor.at
        name = cursor.expect_kind("name", f"an attribute of {op.qualified()}")
        if name not in op.attributes:
            fix = guess(nearest(name, op.attributes)) or f"it has {', '.join(op.attributes) or 'no attributes'}"
            raise cursor.error(f"{op.qualified()} has no attribute {name!r}", at, fix=fix)
        if name in attrs:
            raise cursor.error(f"attribute {name!r} is given twice", at)
        cursor.expect("=")
        attrs[name] = read_value(cursor)
        if not cursor.take(","):
            cursor.expect("}")
            break
    return attrs


def guess(name: str | None) -> str | None:
    """The advice that names the nearest known name, where there is one."""
    return f"did you mean {name!r}?" if name else None


def _list(types: Sequence[Type]) -> str:
    return ", ".join(map(str, types)) or "nothing"
