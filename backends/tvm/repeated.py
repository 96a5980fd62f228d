"""A step of decoding made again: between two tokens only ids, positions and the addresses of results change.

A call of a plan looks at every KV state, which costs little by itself; but the weights of a step have just gone through
the caches, so that each thing that is looked at comes from memory, code of libraries included. What is prepared here
touches next to nothing.
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
        self._shape = rooms[ids].shape
        self._ids, self._positions = _numbers(rooms[ids]), _numbers(rooms[positions])
        self._made = [made for made in bound.made if made is not None]
        self._states = segment.pointed

    def __call__(self, ids: Tensor, lengths: Sequence[int]) -> list[Tensor] | None:
        """The tensors that the graph gives, or None where the call has to be made anew."""
        bound = self._bound
        if ids.shape != self._shape or ids.dtype is not torch.int64 or not ids.is_cpu:
            return None
        if not self._plan.holds(bound) or torch.get_num_threads() != bound.threads:
            return None
        for row, (token,) in enumerate(ids.tolist()):
            self._ids[row], self._positions[row] = token, lengths[row]
        results = [torch.empty(shape, dtype=dtype) for shape, dtype in self._made]
        self._segment.point(self._states)
        self._segment.give((), results)
        self._segment.table.run(bound.threads)
        return results


def _numbers(room: Tensor) -> memoryview:
    """What an input of one integer a row holds, to be written."""
    return room.view(-1).numpy().data.cast("B").cast("q")


def repeated(plan: Plan, bound: Bound, ids: str, positions: str) -> Repeated | None:
    """The call that `bound` has just made, ready to be made again; None where more than those two inputs may change."""
    names = {value.name: i for i, value in enumerate(plan.inputs) if not isinstance(value.type, KVType)}
    tensors = [i for i, value in enumerate(plan.outputs) if not isinstance(value.type, KVType)]
    if names.keys() != {ids, positions} or len(bound.rooms) != 2 or tensors != list(range(len(tensors))):
        return None
    if any(room.dtype is not torch.int64 or room.shape[1:] != (1,) for _, room in bound.rooms):
        return None
    if len(bound.parts) != 1 or plan.buffers.outputs_copied or not isinstance(bound.parts[0], Segment):
        return None
    return Repeated(plan, bound, bound.parts[0], names[ids], names[positions])
