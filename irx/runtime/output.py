"""What a compiled model returns: the structure of the captured forward's result, filled with new tensors."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


class Output:
    """Named results with field, key and index access, as transformers' model outputs have them.

    Indices count the fields that hold something. A field of the captured class that held nothing is None.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.__dict__.update(fields)

    def keys(self) -> list[str]:
        """Names of the fields that hold something."""
        return [name for name, value in self.__dict__.items() if value is not None]

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that hold something, in order."""
        return tuple(self.__dict__[name] for name in self.keys())

    def __getitem__(self, key: str | int | slice) -> Any:
        return self.__dict__[key] if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __repr__(self) -> str:
        return f"Output({', '.join(f'{name}={_short(self.__dict__[name])}' for name in self.keys())})"


def rebuild(tree: Any, tensors: Mapping[str, Tensor], *, classes: bool) -> Any:
    """The result that `tree` describes: a tensor's name, None, or [kind, {key: tree}].

    With `classes` a result class that is loaded in this process is used again; else, and for a class that cannot be
    filled by its fields' names, an Output stands for it. Nothing is imported.
    """
    if tree is None or isinstance(tree, str):
        return None if tree is None else tensors[tree]
    kind, parts = tree
    fields = {key: rebuild(part, tensors, classes=classes) for key, part in parts.items()}
    if kind in ("tuple", "list"):
        return tuple(fields.values()) if kind == "tuple" else list(fields.values())
    if kind == "dict":
        return fields
    made = _made(kind, fields) if classes else None
    return Output(fields) if made is None else made


def _made(kind: str, fields: dict[str, Any]) -> Any:
    module, _, name = kind.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    try:
        return found(**fields) if isinstance(found, type) else None
    except TypeError:  # a class with other arguments than its fields
        return None


def _short(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
