"""The KV states of one call: where their arrays are, and room for the tokens the call appends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from irx.backends.regions.slots import Placed, Slots, appended
from irx.backends.torch.binding import SizeReader
from irx.ir.dims import evaluate
from irx.ir.types import KVType
from irx.runtime.kv import KVState, Step, step_of
from irx.runtime.kv_kept import Kept

_UNLIMITED = 1 << 40


class States:
    """Which inputs of a graph are states, and which positions input says where their new tokens go.

    Kernels are told slots (`irx.backends.regions.slots`) of states that may lose tokens.
    """

    def __init__(self, placed: Placed) -> None:
        graph, self.told = placed.graph, placed.slots
        self._own = len(graph.outputs) - placed.told
        self._slotted = {one.state for one in self.told}
        given = graph.inputs[: len(graph.inputs) - len(self.told)]
        self._chosen = {one.state: v.tensor for one, v in zip(self.told, graph.inputs[len(given) :]) if one.chosen}
        self._sizes = SizeReader(given)
        self.indices = [i for i, value in enumerate(graph.inputs) if isinstance(value.type, KVType)]
        places = appended(graph)
        found = [(i, places[graph.inputs[i]]) for i in self.indices if graph.inputs[i] in places]
        self._known = all(position in graph.inputs or i in self._chosen for i, position in found)
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
        for i, count in self._counts(inputs).items():
            state = inputs[i]
            state.reserve(_first(state) + count, _UNLIMITED)
            state.lengths = _step(state).lengths
        return self._known

    def _counts(self, inputs: Sequence[Any]) -> dict[int, int]:
        """How many tokens of a call the graph chooses, by the index of the state."""
        if not self._chosen:
            return {}
        sizes = self._sizes.named(self._sizes.read(inputs))
        return {i: evaluate(slots.shape[1], sizes) for i, slots in self._chosen.items()}

    def slots(self, inputs: Sequence[Any]) -> list[Tensor]:
        """Where the tokens of a call go, i64 [B, S] for every state that kernels are told about."""
        found: dict[object, Tensor] = {}
        made = []
        for one in self.told:
            kept = inputs[one.state].kept
            key = (None if kept is None else kept.alike, one.positions, one.read, one.chosen)
            if key not in found:
                found[key] = self._slots(one, inputs)
            made.append(found[key])
        return made

    def _slots(self, one: Slots, inputs: Sequence[Any]) -> Tensor:
        state: KVState = inputs[one.state]
        if one.chosen:
            first, count = _first(state), self._counts(inputs)[one.state]
            slots = torch.arange(first, first + count, device=state.keys.device)
            return slots.expand(len(state.lengths), -1).contiguous()
        pos: Tensor = inputs[one.positions]
        if state.kept is None:
            return pos
        return state.kept.seen_of(pos) if one.read else state.kept.slots_of(pos)

    def unused(self, inputs: Sequence[Any]) -> list[Tensor]:
        """In place of slots, for torch's kernels, which look at positions."""
        counts = self._counts(inputs)
        return [
            _zeros(inputs[one.state], counts[one.state]) if one.chosen else inputs[one.positions] for one in self.told
        ]

    def settle(self, inputs: Sequence[Any], outputs: list[Any]) -> list[Any]:
        """The outputs that the graph has by itself, once states know which tokens were chosen for them."""
        for one in self.told:
            state: KVState = inputs[one.state]
            if one.chosen and state.kept is not None:
                state.kept = state.kept.chosen(outputs[one.positions], _step(state))
        return outputs[: self._own]

    def _followed(self, index: int, state: KVState) -> bool:
        """True where the new tokens go behind all others, or into slots of the numbers of their positions."""
        if state.positions is not None:
            return False
        if state.kept is None:
            fits = state.ring is None or max(state.lengths, default=0) < state.ring.window
            return fits and index not in self._chosen
        if index not in self._slotted:
            return False
        alike = state.step is not None and state.step.uniform and _alike(state.kept)
        return state.kept.follows(state.step, state.lengths) and (alike or index not in self._chosen)


def _alike(kept: Kept) -> bool:
    """True where the new tokens of all rows go into the same slots."""
    return kept.common is not None and len(set(kept.counts)) == 1


def _zeros(state: KVState, count: int) -> Tensor:
    return torch.zeros(len(state.lengths), count, dtype=torch.int64, device=state.keys.device)


def _first(state: KVState) -> int:
    """The slot of the first token that a step adds to a state whose rows are alike."""
    assert state.kept is not None
    return state.kept.used((_step(state).start,) * len(state.lengths))[0]


def _step(state: KVState) -> Step:
    """The step of a session, without which kernels follow no choice."""
    assert state.step is not None
    return state.step
