"""Tells whether an attribute's value is of the kind that the op's declaration says, from the annotation's text."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeAlias

from irx.ir.dims import SymDim
from irx.ir.graph import Graph
from irx.ir.opdef import OpDef, Operand
from irx.ir.types import TensorType

Check: TypeAlias = Callable[[Any], bool]

# Exact types: a numpy scalar is a float to isinstance, but no plain data, and True is an int.
_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "str": (str,),
    "None": (type(None),),
    "Dim": (int, SymDim),
    "SymDim": (SymDim,),
    "TensorType": (TensorType,),
    "Operand": (Operand,),
    "Graph": (Graph,),
    "tuple": (tuple,),
}


def misfit(op: type[OpDef], attrs: Mapping[str, Any]) -> str | None:
    """What is wrong with the attributes of a node: the first unknown, missing or unfit one; None when all is well."""
    for name, value in attrs.items():
        if name not in op.attributes:
            return f"{op.qualified()} has no attribute {name!r}"
        annotation = op.attributes[name].annotation
        if not is_plain(value):
            return f"attribute {name!r} of {op.qualified()} is not plain data: {value!r}"
        if not fits(value, annotation):
            return f"attribute {name!r} of {op.qualified()} must be {annotation}, not {value!r}"
    missing = [name for name, parameter in op.attributes.items() if parameter.required and name not in attrs]
    return f"{op.qualified()} lacks its attribute {missing[0]!r}" if missing else None


def is_plain(value: Any) -> bool:
    """True for what can be printed and parsed back: see `irx.ir.opdef.Attr`."""
    if type(value) is tuple:
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str, SymDim, TensorType, Operand, Graph)


def fits(value: Any, annotation: str) -> bool:
    """True when `value` is of the annotated kind; a kind that is not known here fits everything.

    >>> fits((1, 2), "tuple[int, ...]"), fits(1, "float | None"), fits("a", "int")
    (True, True, False)
    """
    return _check(annotation)(value)


@lru_cache(maxsize=1024)
def _check(annotation: str) -> Check:
    try:
        return _of(ast.parse(annotation, mode="eval").body)
    except SyntaxError:
        return _anything


def _of(tree: ast.expr) -> Check:
    match tree:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            first, second = _of(left), _of(right)
            return lambda value: first(value) or second(value)
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=[item, ast.Constant(value=last)])) if (
            last is ...
        ):
            return _every(_of(item))
        case ast.Subscript(value=ast.Name(id="tuple"), slice=inner):
            return _each([_of(item) for item in (inner.elts if isinstance(inner, ast.Tuple) else [inner])])
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            choices = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return _one_of([choice.value for choice in choices if isinstance(choice, ast.Constant)])
        case ast.Name(id=name) if name in _KINDS:
            return _kind(_KINDS[name])
        case ast.Constant(value=None):
            return _kind((type(None),))
    return _anything


def _anything(value: Any) -> bool:
    return True


def _kind(kinds: tuple[type, ...]) -> Check:
    return lambda value: type(value) in kinds


def _every(item: Check) -> Check:
    return lambda value: type(value) is tuple and all(map(item, value))


def _each(items: list[Check]) -> Check:
    return lambda value: (
        type(value) is tuple
        and len(value) == len(items)
        and all(fit(part) for fit, part in zip(items, value, strict=True))
    )


def _one_of(choices: list[Any]) -> Check:
    return lambda value: any(type(value) is type(choice) and value == choice for choice in choices)
