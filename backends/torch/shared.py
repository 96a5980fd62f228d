"""Kernels in two parts, the first of which nodes with the same operands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shared:
    """`kernel(*operands)` is `rest(*other operands, prepare(*operands at takes))`.

    `prepare` gets the attributes that `rest` does not name in `keeps` as well as those it does; a plan calls it once
    for all nodes that agree in its operands and attributes.
    """

    prepare: Callable[..., Any]
    takes: tuple[int, ...]
    rest: Callable[..., Any]
    keeps: tuple[str, ...] = ()
