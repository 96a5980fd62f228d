"""What the runtime needs of a backend's kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from irx.ir.graph import Value
from irx.ledger import Row
from irx.runtime.profile import Timed
from irx.runtime.store import WeightStore


class Repeated(Protocol):
    """A call of a graph with the KV states of an earlier one: a step of decoding, a token for every row."""

    def __call__(self, ids: Tensor, lengths: Sequence[int]) -> list[Tensor] | None:
        """The tensors that the graph gives, its first results, for ids i64 [B, 1] behind rows of so many tokens, which
        the states have room for.

        None where the call no longer stands for the graph (other sizes, another number of threads): nothing has run.
        """
        ...


class GraphKernel(Protocol):
    """One graph, ready to run: tensors and KV states in, the same out, in the order of the graph."""

    name: str
    inputs: Sequence[Value]
    outputs: Sequence[Value]
    output_names: Sequence[str]

    @property
    def bytes(self) -> int:
        """Bytes of buffers that are kept between calls, weights and constants not counted."""
        ...

    def bind(self, store: WeightStore) -> None:
        """Take the weights from `store` and prepare what depends on them only. Called once, before the first call."""
        ...

    @property
    def fallbacks(self) -> Mapping[str, str]:
        """Nodes that the backend leaves to torch, each with the reason."""
        ...

    def report(self) -> Sequence[Row]:
        """What the backend decided, as rows of the ledger with steps counted from 0."""
        ...

    def profile(self, *inputs: Any) -> list[Timed]:
        """The time of every step of a call."""
        ...

    def repeated(self, inputs: Sequence[Any], ids: str, positions: str) -> Repeated | None:
        """The last call, which had these inputs, to be made again with other ids and positions while no state grows.

        None where the backend has nothing to gain from it.
        """
        ...

    def __call__(self, *inputs: Any) -> list[Any]:
        """Run on inputs that fit the graph's types; they are not checked again."""
        ...
