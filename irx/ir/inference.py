"""Remembers what type rules said: the layers of a model repeat the same few applications of ops over and over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from irx.errors import IRXError, TypeRuleError
from irx.ir.graph import Graph
from irx.ir.opdef import Attr, OpDef
from irx.ir.spelling import format_value
from irx.ir.types import Type


class Inference:
    """Result types by op, operand types and attributes. Keep one for as long as one text or program is worked on."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], tuple[Type, ...]] = {}

    def types(self, op: type[OpDef], operands: Sequence[Type | None], attrs: Mapping[str, Attr]) -> tuple[Type, ...]:
        """As `OpDef.types`, but a rule that stumbles over a strange attribute is a TypeRuleError too."""
        key = (op, *operands, *((name, _key(value)) for name, value in attrs.items()))
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = _infer(op, operands, attrs)
        return found


def _key(value: Attr) -> object:
    """Spelled, because 1, 1.0 and True are one key to a dict; bodies by identity."""
    return value if isinstance(value, Graph) else format_value(value)


def _infer(op: type[OpDef], operands: Sequence[Type | None], attrs: Mapping[str, Attr]) -> tuple[Type, ...]:
    try:
        return op.types(operands, attrs)
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        if isinstance(error, IRXError):
            raise
        raise TypeRuleError(f"{op.qualified()} cannot take these attributes: {error}") from error
