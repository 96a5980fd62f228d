"""A recorded step made again: between two tokens only ids and positions change, and both have rooms of their own.

A call of a plan looks at every KV state on the host, which takes longer than the GPU takes for a small model's step;
and positions that come from the host wait for the GPU. Here nothing waits: a copy, a fill, and the replay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from irx.backends.triton.capture import Recording
from irx.ir.types import KVType

if TYPE_CHECKING:
    from irx.backends.triton.binding import Bound
    from irx.backends.triton.plan import Plan


class Repeated:
    """See `irx.runtime.kernel.Repeated`. Holds for the states of one call, until one of them moves."""

    def __init__(self, plan: Plan, bound: Bound, recording: Recording, ids: Tensor, positions: Tensor) -> None:
        self._plan, self._bound, self._recording = plan, bound, recording
        self._ids, self._positions = ids, positions

    def __call__(self, ids: Tensor, lengths: Sequence[int]) -> list[Tensor] | None:
        """The tensors that the graph gives, or None where the call has to be made anew."""
        room, graph = self._ids, self._recording.graph
        if ids.shape != room.shape or ids.dtype is not room.dtype or ids.device != room.device:
            return None
        if graph is None or not self._plan.holds(self._bound):
            return None
        room.copy_(ids)
        if len(set(lengths)) == 1:
            self._positions.fill_(lengths[0])
        else:
            self._positions.copy_(torch.tensor(lengths)[:, None])
        graph.replay()
        return [output.clone() for output in self._recording.outputs if isinstance(output, Tensor)]


def repeated(plan: Plan, bound: Bound, recording: Recording, ids: str, positions: str) -> Repeated | None:
    """The call that `bound` has just replayed; None where more than those two inputs may change."""
    names = {value.name: i for i, value in enumerate(plan.inputs) if not isinstance(value.type, KVType)}
    tensors = [i for i, value in enumerate(plan.outputs) if not isinstance(value.type, KVType)]
    if names.keys() != {ids, positions} or tensors != list(range(len(tensors))) or plan.buffers.outputs_copied:
        return None
    rooms = [bound.rooms.get(names[name]) for name in (ids, positions)]
    if recording.graph is None or rooms[0] is None or rooms[1] is None:
        return None
    return Repeated(plan, bound, recording, rooms[0], rooms[1])
