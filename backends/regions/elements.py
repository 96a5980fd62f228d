"""What generators of element texts share: the dtype an elementwise op computes in, and tables of ops by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from irx.ir.graph import Node
from irx.ops.shapes import result_dtype

Writer = TypeVar("Writer", bound=Callable[..., Any])
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
"""Signs of ops that compare their operands."""


def computed_dtype(node: Node) -> str:
    """The dtype that a node computes in: for casts and comparisons that of the operands, else that of the result."""
    if node.op.name == "cast":
        assert node.inputs[0] is not None
        return node.inputs[0].dtype
    if node.op.name in COMPARISONS:
        return result_dtype(*(v.tensor for v in node.inputs if v is not None))
    return node.output.dtype


def writers_in(table: dict[str, Writer]) -> Callable[..., Callable[[Writer], Writer]]:
    """A decorator for `table`: the function writes the ops of these names."""

    def op(*names: str) -> Callable[[Writer], Writer]:
        def register(function: Writer) -> Writer:
            table.update(dict.fromkeys(names, function))
            return function

        return register

    return op
