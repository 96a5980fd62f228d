"""Kernels of the torch backend: one plain function per op, found by its name.

A kernel has its op's signature with tensors in place of types: operands are positional (tensors, Python scalars for
literals, None for what is left out), attributes are keywords. An op whose name is taken in Python (`and`, `sum`) has a
kernel with an underscore behind it. Sizes in attributes are ints by the time a kernel sees them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

from irx.errors import NameClash, UnknownOp

Kernel = Callable[..., Any]


@cache
def kernels() -> dict[str, Kernel]:
    """Every kernel by the name of its op."""
    found: dict[str, Kernel] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for name, function in vars(module).items():
            if not _is_kernel(name, function, module.__name__):
                continue
            op = name.rstrip("_")
            if op in found:
                raise NameClash("kernel", op, found[op].__module__, module.__name__)
            found[op] = function
    return found


def find(op: str) -> Kernel:
    """The kernel of an op. Raises UnknownOp naming the nearest one."""
    if op not in kernels():
        raise UnknownOp(op, kernels(), where="the torch backend")
    return kernels()[op]


def _is_kernel(name: str, function: object, module: str) -> bool:
    return isinstance(function, FunctionType) and not name.startswith("_") and function.__module__ == module
