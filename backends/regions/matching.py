"""What `match_tokens` asks for, as both kinds of kernels read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from irx.backends.regions.lowered import Refusal
from irx.ir.dims import Dim
from irx.ir.graph import Node, Value


@dataclass(frozen=True)
class Match:
    """The op: keys [B, G, S, D]; odd tokens from `odd` on may go into even ones from `even` on."""

    node: Node
    keys: Value
    sizes: Value
    received: Value | None
    heads: int
    channels: int
    alpha: float
    odd: int
    even: int

    @classmethod
    def of(cls, node: Node) -> Self:
        """What a node says. Raises Refusal for heads or channels that are no number."""
        keys, sizes = node.inputs[:2]
        assert keys is not None and sizes is not None
        first, alpha = node.attr("first"), node.attr("alpha")
        assert isinstance(first, int) and isinstance(alpha, int | float)
        heads, channels = keys.shape[1], keys.shape[3]
        if not isinstance(heads, int) or not isinstance(channels, int):
            raise Refusal(f"match_tokens of keys {keys.type}")
        received = node.operand("received")
        return cls(node, keys, sizes, received, heads, channels, float(alpha), first | 1, first + first % 2)

    @property
    def width(self) -> int:
        """Elements of a key over all heads."""
        return self.heads * self.channels

    @property
    def tokens(self) -> Dim:
        """Of the whole batch."""
        return self.keys.shape[0] * self.keys.shape[2]
