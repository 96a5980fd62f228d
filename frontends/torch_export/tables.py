"""The translation table: one rule per aten overload, declared in the family files of `irx.frontends.torch_export.aten`.

    @rule("aten.silu.default")
    def silu(site: Site, self: Value) -> Value:
        return site("silu", self)

A rule takes the operands under the names of the operator's schema, tensors as values, sizes as dims, everything else as
it is, with the schema's defaults filled in. Arguments that say nothing about values (device, layout, memory format) are
left out. It returns what the operator returns, or raises `Untranslatable` to keep the operator as a `torch.call`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias, TypeVar

Rule: TypeAlias = Callable[..., Any]

_RULES: dict[str, Rule] = {}

IGNORED = frozenset({"device", "layout", "pin_memory", "non_blocking", "memory_format", "copy"})
"""Schema arguments no rule receives."""


class Untranslatable(Exception):
    """Raised by a rule for a case that IRX's operations cannot say; the operator stays as a `torch.call`."""


Declared = TypeVar("Declared", bound=Rule)


def rule(*overloads: str) -> Callable[[Declared], Declared]:
    """Declare the rule of these overloads, as `aten.add.Tensor`."""

    def declare(function: Declared) -> Declared:
        for overload in overloads:
            if overload in _RULES:
                raise ValueError(f"two rules for {overload}: {_RULES[overload]} and {function}")
            _RULES[overload] = function
        return function

    return declare


@cache
def rules() -> dict[str, Rule]:
    """All rules by overload name; imports every family file."""
    from irx.frontends.torch_export import aten

    for module in pkgutil.iter_modules(aten.__path__, f"{aten.__name__}."):
        importlib.import_module(module.name)
    return _RULES
