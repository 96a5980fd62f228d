"""From options in text to the fields of a pass, typed by their annotations, and back."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from irx.errors import BadOption, UnknownOption, nearest
from irx.pipeline.base import Pass
from irx.pipeline.text import Value, format_value


def configure(kind: type[Pass], options: Mapping[str, Value]) -> Pass:
    """The pass with these options. Raises UnknownOption with the nearest name, BadOption for a value that is none."""
    hints = _hints(kind)
    for name in options:
        if name not in hints:
            raise UnknownOption(name, [spelled.replace("_", "-") for spelled in hints], where=f"pass {kind.name!r}")
    for option in fields(kind):
        if option.name not in options and _default(option) is MISSING:
            raise BadOption(f"option {option.name!r} of pass {kind.name!r} must be given", fix=_usage(option, hints))
    try:
        return kind(**{name: _convert(kind, name, value, hints[name]) for name, value in options.items()})
    except ValueError as error:
        raise BadOption(f"pass {kind.name!r}: {error}") from error


def spell(one: Pass) -> str:
    """The pass as it is written in a pipeline: options that have their default are left out."""
    stated = [
        f"{option.name.replace('_', '-')}={format_value(getattr(one, option.name))}"
        for option in fields(one)
        if not _same(getattr(one, option.name), _default(option))
    ]
    return f"{one.name}{{{', '.join(stated)}}}" if stated else one.name


def option_types(kind: type[Pass]) -> dict[str, str]:
    """The options of a pass with their types in words."""
    return {name: _words(hint) for name, hint in _hints(kind).items()}


def _hints(kind: type[Pass]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {option.name: hints[option.name] for option in fields(kind)}


def _default(option: Field[Any]) -> Any:
    return option.default if option.default_factory is MISSING else option.default_factory()


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b)


def _convert(kind: type[Pass], name: str, value: Value, hint: Any) -> Any:
    try:
        return _fitted(value, hint)
    except TypeError:
        what = f"option {name.replace('_', '-')!r} of pass {kind.name!r} must be {_words(hint)}"
        raise BadOption(f"{what}, not {format_value(value)}", fix=_advice(value, hint)) from None


def _fitted(value: Value, hint: Any) -> Any:
    """`value` as the annotation wants it. Raises TypeError where it does not fit."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _first_fit(value, arguments)
    if origin is Literal:
        if any(_same(value, choice) for choice in arguments):
            return value
        raise TypeError
    if origin is tuple or hint is tuple:
        return _tuple(value, arguments)
    if hint is float and type(value) is int:
        return float(value)
    if hint is not Any and type(value) is not hint:
        raise TypeError
    return value


def _first_fit(value: Value, hints: tuple[Any, ...]) -> Any:
    exact = [hint for hint in hints if hint is type(value)]
    for hint in (*exact, *hints):
        try:
            return _fitted(value, hint)
        except TypeError:
            continue
    raise TypeError


def _tuple(value: Value, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    if type(value) is not tuple:
        raise TypeError
    if not arguments:
        return value
    if arguments[-1] is ...:
        return tuple(_fitted(item, arguments[0]) for item in value)
    if len(arguments) != len(value):
        raise TypeError
    return tuple(_fitted(item, hint) for item, hint in zip(value, arguments, strict=True))


def _words(hint: Any) -> str:
    """`int`, `float or none`, `one of "half", "full"`, `a list of int`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_words, arguments))
    if origin is Literal:
        return f"one of {', '.join(map(format_value, arguments))}"
    if origin is tuple and arguments[-1] is ...:
        return f"a list of {_words(arguments[0])}"
    if origin is tuple:
        return f"a list [{', '.join(map(_words, arguments))}]"
    return "none" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _advice(value: Value, hint: Any) -> str | None:
    if get_origin(hint) is not Literal or not isinstance(value, str):
        return None
    guess = nearest(value, [choice for choice in get_args(hint) if isinstance(choice, str)])
    return f"did you mean {guess!r}?" if guess else None


def _usage(option: Field[Any], hints: Mapping[str, Any]) -> str:
    return f"write {option.name.replace('_', '-')}=..., which is {_words(hints[option.name])}"
