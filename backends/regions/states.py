"""The KV states of one call: where their arrays are, and room for the tokens the call appends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from irx.backends.regions.slots import Slots, appended
from irx.ir.graph import Graph
from irx.ir.types import KVType
from irx.runtime.kv import KVState, step_of

_UNLIMITED = 1 << 40


class States:
    """Which inputs of a graph are states, and which positions input says where their new tokens go.

    `slots` say of which states and positions kernels are told the slots (`irx.backends.regions.slots`).
    """

    def __init__(self, graph: Graph, slots: Sequence[Slots] = ()) -> None:
        self.told = tuple(slots)
        self.indices = [i for i, value in enumerate(graph.inputs) if isinstance(value.type, KVType)]
        places = appended(graph)
        found = [(i, places[graph.inputs[i]]) for i in self.indices if graph.inputs[i] in places]
        self._known = all(position in graph.inputs for _, position in found)
        self._appending = [(i, graph.inputs.index(position)) for i, position in found if position in graph.inputs]

    def make_room(self, inputs: Sequence[Any]) -> bool:
        """Room for the tokens of a call in all states it appends to; False where kernels cannot follow a state.

        Kernels take states whose slots are their tokens in order, to which a call appends without leaving holes.
        """
        if not all(self._followed(i, inputs[i]) for i in self.indices):
            return False
        needed, last = 0, None
        for i, position in self._appending:
            state: KVState = inputs[i]
            step = state.step or step_of(state.lengths, inputs[position].tolist())
            if step is None:
                return False
            if step is not last:
                last, needed = step, step.needed
            if state.kept is not None:
                state.kept.reserve(state, needed)
            elif needed > step.room:
                if state.step is None:
                    state.own()
                state.admit(step, _UNLIMITED)
            state.lengths = step.lengths
        return self._known

    def slots(self, inputs: Sequence[Any]) -> list[Tensor]:
        """Where the tokens of a call go, i64 [B, S] for every state that kernels are told about."""
        found: dict[tuple[object, int, bool], Tensor] = {}
        made = []
        for one in self.told:
            kept = inputs[one.state].kept
            key = (None if kept is None else kept.alike, one.positions, one.read)
            if key not in found:
                pos = inputs[one.positions]
                found[key] = pos if kept is None else kept.seen_of(pos) if one.read else kept.slots_of(pos)
            made.append(found[key])
        return made

    def _followed(self, index: int, state: KVState) -> bool:
        """True where the new tokens go behind all others, or into slots of the numbers of their positions."""
        if state.positions is not None:
            return False
        if state.kept is None:
            return state.ring is None or max(state.lengths, default=0) < state.ring.window
        return state.kept.follows(state.step, state.lengths) and any(index == one.state for one in self.told)
