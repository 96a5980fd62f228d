"""Values that depend on weights only, computed once when weights are bound and shared by all graphs."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from irx.backends.torch.lowering import Instruction, Lowered
from irx.runtime.store import WeightStore


class Constants:
    """Computes constants on demand, so that what no call reads is never made.

    Weights that are read only to compute constants are not kept, and intermediate values live until the constant they
    were needed for is there.
    """

    def __init__(self, lowered: Lowered, instructions: Sequence[Instruction], store: WeightStore) -> None:
        self._lowered = lowered
        self._store = store
        self._makers = {target: i for i in instructions for target in i.targets}
        self._keys: dict[Instruction, int] = {}
        self._intermediate: dict[int, Any] = {}

    def value(self, register: int) -> Any:
        """The constant in a register that is read in every call; kept, and the same object for every graph."""
        if register in self._lowered.weights:
            return self._store.keep(self._lowered.weights[register])
        maker = self._makers[register]
        result = self._store.derived(self._key(maker), lambda: self._compute(maker))
        self._intermediate.clear()
        return _result(result, maker, register)

    def _compute(self, maker: Instruction) -> Any:
        return maker.bind({})(*map(self._operand, maker.sources))

    def _operand(self, register: int) -> Any:
        """A constant that is only needed now."""
        if register in self._lowered.literals:
            return self._lowered.literals[register]
        if register in self._lowered.weights:
            return self._store.read(self._lowered.weights[register])
        maker = self._makers[register]
        key = self._key(maker)
        if key not in self._intermediate:
            self._intermediate[key] = self._compute(maker) if (kept := self._store.kept(key)) is None else kept
        return _result(self._intermediate[key], maker, register)

    def _key(self, maker: Instruction) -> int:
        """A number that is equal for instructions that compute the same from the same weights, in any graph."""
        if maker not in self._keys:
            sources = tuple(map(self._source_key, maker.sources))
            self._keys[maker] = self._store.number((maker.function, tuple(maker.attrs.items()), sources))
        return self._keys[maker]

    def _source_key(self, register: int) -> Hashable:
        if register in self._lowered.literals:
            return ("literal", repr(self._lowered.literals[register]))
        if register in self._lowered.weights:
            return ("weight", self._lowered.weights[register])
        maker = self._makers[register]
        return (self._key(maker), maker.targets.index(register))


def _result(result: Any, maker: Instruction, register: int) -> Any:
    return result if len(maker.targets) == 1 else result[maker.targets.index(register)]


def place(targets: tuple[int, ...]) -> int | slice:
    """Where an instruction's results go: one register, or the consecutive ones of a node with several results."""
    return targets[0] if len(targets) == 1 else slice(targets[0], targets[-1] + 1)
