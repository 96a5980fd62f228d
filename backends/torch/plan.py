"""A graph as a list of steps over registers, specialised for every binding of its named sizes.

What depends on weights only is computed when weights are bound. For every binding of sizes, attributes are resolved to
ints and what depends on nothing else is computed, once; the last bindings are kept, so that a decode step does no
arithmetic on sizes at all. Running a plan is one loop: read registers, call, write registers, drop what is dead.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor

from irx.backends.torch.binding import SizeReader
from irx.backends.torch.constants import Constants, place
from irx.backends.torch.lowering import CONSTANT, SIZED, VARIABLE, Instruction, lower
from irx.ir.dims import Bindings
from irx.ir.graph import Graph
from irx.ledger import Row
from irx.runtime.profile import Timed
from irx.runtime.store import WeightStore

BINDINGS_KEPT = 32
LARGEST_KEPT = 1 << 18  # bytes of a tensor that is kept with a binding; larger ones are computed in every call

Step: TypeAlias = tuple[Callable[..., Any], Callable[[list[Any]], Sequence[Any]], "int | slice", tuple[int, ...]]
"""Function, what reads its operands, where results go, which registers are dropped afterwards."""


@dataclass(frozen=True)
class Specialised:
    """The plan for one binding of sizes."""

    registers: list[Any]
    steps: list[Step]
    instructions: list[Instruction]  # what the steps were made of


class Plan:
    """One graph, ready to run on one device. See `irx.runtime.kernel.GraphKernel`."""

    def __init__(self, graph: Graph, device: torch.device) -> None:
        self.name = graph.name
        self.inputs = tuple(graph.inputs)
        self.outputs = tuple(graph.outputs)
        self.output_names = tuple(graph.output_names)
        self._device = device
        self._lowered = lower(graph, device)
        self._sizes = SizeReader(graph.inputs)
        self._registers: list[Any] = [None] * len(self._lowered.levels)
        self._specialised: OrderedDict[tuple[int, ...], Specialised] = OrderedDict()
        self._read_outputs = _reader(tuple(self._lowered.outputs))
        # What a caller gets must be its own: constants are kept and would be changed by whoever writes to them.
        self._copied = [i for i, r in enumerate(self._lowered.outputs) if self._lowered.levels[r] != VARIABLE]

    def bind(self, store: WeightStore) -> None:
        """Take the weights and compute what depends on them only."""
        instructions = self._of_level(CONSTANT)
        for register, value in self._lowered.literals.items():
            self._registers[register] = value
        constants = Constants(self._lowered, instructions, store)
        for register in self._read_at_run_time():
            if self._lowered.levels[register] == CONSTANT and register not in self._lowered.literals:
                self._registers[register] = constants.value(register)
        self._specialised.clear()

    def __call__(self, *inputs: Any) -> list[Any]:
        """The outputs in order. KV states are changed in place."""
        sizes = self._sizes.read(inputs)
        special = self._specialised.get(sizes)
        if special is None:
            special = self._specialise(sizes)
        self._specialised.move_to_end(sizes)
        registers = special.registers.copy()
        registers[: len(inputs)] = inputs
        for function, read, target, dead in special.steps:
            registers[target] = function(*read(registers))
            for register in dead:
                registers[register] = None
        results = list(self._read_outputs(registers))
        for i in self._copied:
            results[i] = results[i].clone()
        return results

    def repeated(self, inputs: Sequence[Any], ids: str, positions: str) -> None:
        """Every call is made alike."""

    @property
    def fallbacks(self) -> dict[str, str]:
        """Nothing is left to another backend."""
        return {}

    def report(self) -> list[Row]:
        """There was nothing to decide."""
        return []

    def profile(self, *inputs: Any) -> list[Timed]:
        """The time of every step of one call; KV states are changed in place."""
        special = self._specialised.get(self._sizes.read(inputs)) or self._specialise(self._sizes.read(inputs))
        registers = special.registers.copy()
        registers[: len(inputs)] = inputs
        times: list[Timed] = []
        for (function, read, target, dead), made_of in zip(special.steps, special.instructions, strict=True):
            start = self._now()
            registers[target] = function(*read(registers))
            times.append(Timed(made_of.op, made_of.place, self._now() - start))
            for register in dead:
                registers[register] = None
        return times

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @property
    def bytes(self) -> int:
        """Bytes of tensors that are kept with bindings of sizes."""
        sized = [i for i, level in enumerate(self._lowered.levels) if level == SIZED]
        return sum(_bytes(special.registers[i]) for special in self._specialised.values() for i in sized)

    def _of_level(self, *levels: int) -> list[Instruction]:
        return [instruction for instruction in self._lowered.instructions if instruction.level in levels]

    def _read_at_run_time(self) -> set[int]:
        read = {s for instruction in self._of_level(SIZED, VARIABLE) for s in instruction.sources}
        return read | set(self._lowered.outputs)

    def _specialise(self, sizes: tuple[int, ...]) -> Specialised:
        if len(self._specialised) >= BINDINGS_KEPT:
            self._specialised.popitem(last=False)
        bindings = self._sizes.named(sizes)
        registers = self._registers.copy()
        large = self._evaluate_sized(registers, bindings)
        running = [i for i in self._lowered.instructions if i.level == VARIABLE or i in large]
        read = {s for i in running for s in i.sources}.union(self._lowered.outputs)
        computed = {t for i in running for t in i.targets}
        for register, level in enumerate(self._lowered.levels):
            if level == SIZED and (register in computed or register not in read):
                registers[register] = None
        dropped = computed.union(range(len(self.inputs))).difference(self._lowered.outputs)
        steps = _steps(running, bindings, dropped)
        made = self._specialised[sizes] = Specialised(registers, steps, running)
        return made

    def _evaluate_sized(self, registers: list[Any], bindings: Bindings) -> set[Instruction]:
        """Compute what depends on sizes only; returns the instructions whose results are too large to keep."""
        large: set[Instruction] = set()
        for instruction in self._of_level(SIZED):
            result = instruction.bind(bindings)(*(registers[s] for s in instruction.sources))
            registers[place(instruction.targets)] = result
            if _bytes(result) > LARGEST_KEPT:
                large.add(instruction)
        return large


def _steps(running: Sequence[Instruction], bindings: Bindings, droppable: set[int]) -> list[Step]:
    """The steps, each with the registers among `droppable` that nothing reads after it."""
    alive: set[int] = set()
    steps: list[Step] = []
    for instruction in reversed(running):
        last = droppable.intersection(instruction.sources + instruction.targets) - alive
        alive |= last
        steps.append(
            (instruction.bind(bindings), _reader(instruction.sources), place(instruction.targets), tuple(last))
        )
    return steps[::-1]


def _reader(sources: tuple[int, ...]) -> Callable[[list[Any]], Sequence[Any]]:
    """What reads those registers in one call to C: a tuple for several, a list for one or none."""
    if len(sources) > 1:
        return itemgetter(*sources)
    return itemgetter(slice(sources[0], sources[0] + 1) if sources else slice(0, 0))


def _bytes(result: Any) -> int:
    if isinstance(result, tuple):
        return sum(map(_bytes, result))
    return result.untyped_storage().nbytes() if isinstance(result, Tensor) else 0
