"""A step of decoding made again: between two tokens only ids, positions and the addresses of results change.

A call of a plan looks at every KV state, which costs little by itself; but the weights of a step have just gone through
the caches, so that each thing that is looked at comes from memory. What is prepared here touches next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from irx.backends.tvm.binding import Bound, Segment
from irx.ir.types import KVType

if TYPE_CHECKING:
    from irx.backends.tvm.plan import Plan


class Repeated:
    """See `irx.runtime.kernel.Repeated`. Holds for the states of one call, until one of them moves."""

    def __init__(self, plan: Plan, bound: Bound, segment: Segment, ids: int, positions: int) -> None:
        self._plan, self._bound, self._segment = plan, bound, segment
        rooms = dict(bound.rooms)
        self._ids = rooms[ids]
        self._positions = rooms[positions].numpy()
        self._made = [made for made in bound.made if made is not None]
        self._states = segment.pointed

    def __call__(self, ids: Tensor, lengths: Sequence[int]) -> list[Tensor] | None:
        """The tensors that the graph gives, or None where the call has to be made anew."""
        room, bound = self._ids, self._bound
        if ids.shape != room.shape or ids.dtype is not room.dtype or not ids.is_cpu:
            return None
        if not self._plan.holds(bound) or torch.get_num_threads() != bound.threads:
            return None
        room.copy_(ids)
        self._positions[:, 0] = lengths
        results = [torch.empty(shape, dtype=dtype) for shape, dtype in self._made]
        self._segment.point(self._states)
        self._segment.give((), results)
        self._segment.table.run(bound.threads)
        return results


def repeated(plan: Plan, bound: Bound, ids: str, positions: str) -> Repeated | None:
    """The call that `bound` has just made, ready to be made again; None where more than those two inputs may change."""
    names = {value.name: i for i, value in enumerate(plan.inputs) if not isinstance(value.type, KVType)}
    tensors = [i for i, value in enumerate(plan.outputs) if not isinstance(value.type, KVType)]
    if names.keys() != {ids, positions} or len(bound.rooms) != 2 or tensors != list(range(len(tensors))):
        return None
    if len(bound.parts) != 1 or plan.buffers.outputs_copied or not isinstance(bound.parts[0], Segment):
        return None
    return Repeated(plan, bound, bound.parts[0], names[ids], names[positions])
