"""A plan for one binding of sizes: tables of kernel calls with every address and size in place but those of a call."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from irx.backends.regions.buffers import padded
from irx.backends.regions.lowered import Binding, Call, Capacity, Case, Data, PackedPart, StatePart, Temporary
from irx.backends.regions.sites import Site
from irx.backends.regions.steps import Step
from irx.backends.tvm.kernel import Pointer
from irx.backends.tvm.native import Argument, Entry, Table
from irx.ir.dims import Bindings, Dim, evaluate
from irx.ir.graph import Value, Weight
from irx.ir.types import KVType, TensorType
from irx.runtime.kv import KVState
from irx.runtime.profile import Timed
from irx.runtime.tensors import TORCH

LARGEST_COPIED = 1 << 20  # bytes of an input that every call copies, so that kernels may read a little beyond its end

if TYPE_CHECKING:
    from irx.backends.tvm.plan import Plan


class Segment:
    """Calls that run as one table.

    `late` are arguments that only a call of the graph knows: entry, argument, and where it comes from.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.steps: list[Step] = []
        self.kernels: list[str] = []
        self.late: list[tuple[int, int, Late]] = []
        self.pointed = Pointed([], [])

    def finish(self) -> None:
        """Make the table."""
        self.table = Table(self.entries)
        of_states = [late for late in self.late if late[2].kind == "state"]
        others = [late for late in self.late if late[2].kind != "state"]
        self._tensors = [(self.table.place(e, a), *late.of) for e, a, late in others]
        self._parts = [late for _, _, late in of_states]
        self._part_places = np.array([self.table.place(e, a) for e, a, _ in of_states], np.int64)
        self._indices = sorted({late.index for late in self._parts})

    def fill(self, given: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Put the addresses of one call into the table; states that have not moved stay as they are."""
        self.give(given, outputs)
        planes = [given[i].keys.number for i in self._indices]  # new where a state has grown
        if planes != self.pointed.planes:
            self.point(Pointed(planes, [_state_argument(given[late.index], late.part) for late in self._parts]))

    def give(self, given: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Put in the addresses of tensors."""
        sides = (given, outputs)
        for place, side, index in self._tensors:
            self.table.put(place, sides[side][index].data_ptr())

    def point(self, states: Pointed) -> None:
        """Put in the addresses of states."""
        if states is not self.pointed:
            self.table.set(self._part_places, states.arguments)
            self.pointed = states


@dataclass(frozen=True, eq=False)
class Pointed:
    """The states that a table's arguments are of: the numbers of their planes, and the arguments."""

    planes: list[int]
    arguments: list[int]


def room(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An empty tensor on a 64-byte boundary, with 64 bytes behind it that may be read."""
    size = math.prod(shape) * dtype.itemsize
    return torch.empty(size + 64, dtype=torch.uint8)[:size].view(dtype).view(list(shape))


def readable(tensor: Tensor) -> Tensor:
    """The tensor as kernels take it: itself where it is contiguous and on a 64-byte boundary, else a copy."""
    if tensor.is_contiguous() and tensor.data_ptr() % 64 == 0:
        return tensor
    return room(tensor.shape, tensor.dtype).copy_(tensor)


@dataclass(frozen=True)
class Late:
    """Where a late argument comes from: an input, an output, or a part (a number: `#` and its name) of a state."""

    kind: str
    index: int
    part: str = ""

    @property
    def of(self) -> tuple[int, int]:
        """0 for inputs and 1 for outputs, and the index among them."""
        return int(self.kind == "output"), self.index


@dataclass(frozen=True, eq=False)
class TorchStep:
    """A node that torch runs between two tables."""

    step: Step
    run: Callable[..., list[Any]]
    sources: tuple[Value, ...]
    sizes: tuple[Tensor, ...]


class Bound:
    """All that one binding of sizes needs, ready to run."""

    def __init__(self, plan: Plan, sizes: Bindings, threads: int) -> None:
        self.plan = plan
        self.sizes = sizes
        self.threads = threads
        self.parts: list[Segment | TorchStep] = []
        self.base = 0
        self.offsets: list[int] = []
        self._known: dict[Dim, int] = {}
        self.rooms: list[tuple[int, Tensor]] = []
        self._large: list[int] = []
        self._take_inputs()
        states = [(i, v) for i, v in enumerate(plan.all_outputs) if isinstance(v.type, KVType)]
        self._states = [(i, plan.all_inputs.index(plan.buffers.root[value])) for i, value in states]
        self.made = [self._new(i, value) for i, value in enumerate(plan.all_outputs)]

    def size(self, dim: Dim) -> int:
        """The number that a size expression has here."""
        if isinstance(dim, int):
            return dim
        found = self._known.get(dim)
        if found is None:
            found = self._known[dim] = evaluate(dim, self.sizes)
        return found

    def _take_inputs(self) -> None:
        """Small inputs are copied to rooms of their own, so that kernels find them always in the same place."""
        for index, value in enumerate(self.plan.all_inputs):
            if not isinstance(value.type, TensorType):
                continue
            shape, dtype = self.shape(value.type), TORCH[value.dtype]
            if math.prod(shape) * dtype.itemsize > LARGEST_COPIED:
                self._large.append(index)
            else:
                self.rooms.append((index, room(shape, dtype)))

    def _new(self, index: int, value: Value) -> tuple[list[int], torch.dtype] | None:
        """Shape and dtype of an output that every call makes anew."""
        if not isinstance(value.type, TensorType) or index in self.plan.buffers.outputs_copied:
            return None
        return self.shape(value.type), TORCH[value.dtype]

    def shape(self, type: TensorType) -> list[int]:
        """A tensor's shape here."""
        return [self.size(dim) for dim in type.shape]

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """One call."""
        given, outputs = self._ready(inputs)
        for part in self.parts:
            if isinstance(part, TorchStep):
                self._by_torch(part, given, outputs)
            else:
                part.fill(given, outputs)
                part.table.run(self.threads)
        return self._results(given, outputs)

    def profile(self, inputs: Sequence[Any]) -> list[Timed]:
        """One call, with the time of every step."""
        given, outputs = self._ready(inputs)
        times: list[Timed] = []
        for part in self.parts:
            start = time.perf_counter()
            if isinstance(part, TorchStep):
                self._by_torch(part, given, outputs)
                times.append(Timed(part.step.site.name, part.step.site.place, time.perf_counter() - start))
                continue
            part.fill(given, outputs)
            start = time.perf_counter()
            stamps = part.table.stamped(self.threads)
            cycles = np.diff(stamps) * ((time.perf_counter() - start) / max(1, int(stamps[-1] - stamps[0])))
            calls = zip(part.steps, part.kernels, cycles.tolist(), strict=True)
            times += [Timed(step.site.name, step.site.place, seconds, kernel) for step, kernel, seconds in calls]
        return times

    def _ready(self, inputs: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Inputs as kernels take them, and new tensors for outputs."""
        given = list(inputs)
        for index, room in self.rooms:
            room.copy_(inputs[index])
            given[index] = room
        for index in self._large:
            given[index] = readable(inputs[index])
        outputs = [None if made is None else torch.empty(made[0], dtype=made[1]) for made in self.made]
        return given, outputs

    def _by_torch(self, part: TorchStep, given: list[Any], outputs: Sequence[Any]) -> None:
        made = part.run(*(self.tensor(value, given, outputs) for value in part.sources), *part.sizes)
        for value, result in zip(part.step.site.results, made, strict=True):
            if isinstance(value.type, TensorType):
                self.tensor(value, given, outputs).copy_(result)
            else:  # a state whose tokens were chosen is a new one
                given[self.plan.all_inputs.index(self.plan.buffers.root[value])] = result

    def _results(self, given: Sequence[Any], outputs: list[Any]) -> list[Any]:
        for output, index in self._states:
            outputs[output] = given[index]
        for output in self.plan.buffers.outputs_copied:
            outputs[output] = self.tensor(self.plan.all_outputs[output], given, outputs).clone()
        return outputs

    def tensor(self, value: Value, given: Sequence[Any], outputs: Sequence[Any]) -> Any:
        """A value's tensor (or state) in this call."""
        if value in self.plan.constants:
            return self.plan.constants.value(value)
        root = self.plan.buffers.root[value]
        if root in self.plan.all_inputs:
            found = given[self.plan.all_inputs.index(root)]
            return found.view(self.shape(value.tensor)) if isinstance(value.type, TensorType) else found
        place = self.place(value)
        if isinstance(place, Late):
            return outputs[place.index].view(self.shape(value.tensor))
        size = self.size(value.tensor.elements) * TORCH[value.dtype].itemsize
        start = place - self.base
        return self.plan.arena[start : start + size].view(TORCH[value.dtype]).view(self.shape(value.tensor))

    def place(self, value: Value) -> int | Late:
        """Where a value's buffer is: its address, or where each call says it is."""
        root = self.plan.buffers.root[value]
        if root in self.plan.buffers.slots:
            return self.base + self.offsets[self.plan.buffers.slots[root]]
        if root in self.plan.all_inputs:
            index = self.plan.all_inputs.index(root)
            own = next((tensor for i, tensor in self.rooms if i == index), None)
            return Late("input", index) if own is None else own.data_ptr()
        outputs = self.plan.all_outputs
        return Late("output", next(i for i, out in enumerate(outputs) if self._root(out) is root))

    def _root(self, value: Value) -> Value | None:
        return self.plan.buffers.root.get(value)


def bind_sizes(plan: Plan, sizes: Mapping[str, int], threads: int) -> Bound:
    """The tables of a plan for one binding of sizes."""
    bound = Bound(plan, sizes, threads)
    chosen = [(step, None if step.lowered is None else _case(step, bound)) for step in plan.steps.steps]
    bound.offsets, end = plan.buffers.offsets(bound.size)
    scratch = max((_scratch(case, bound) for _, case in chosen if case is not None), default=0)
    bound.base = -(-plan.grow(end + scratch + 128) // 64) * 64
    segment = Segment()
    for step, case in chosen:
        if case is None:
            bound.parts += [segment] if segment.entries else []
            sources = tuple(v for v in dict.fromkeys(step.site.operands) if not isinstance(v, Weight))
            run = plan.constants.torch[step]
            shapes = tuple(torch.empty(1, dtype=torch.uint8).expand(sizes[v.name]) for v in run.inputs[len(sources) :])
            bound.parts.append(TorchStep(step, run, sources, shapes))
            segment = Segment()
        else:
            _add_calls(bound, segment, step, case, bound.base + end)
    bound.parts += [segment] if segment.entries else []
    for part in bound.parts:
        if isinstance(part, Segment):
            part.finish()
    return bound


def _case(step: Step, bound: Bound) -> Case:
    assert step.lowered is not None
    return next(c for c in step.lowered.cases if c.most is None or bound.size(c.size) <= c.most)


def _temporaries(calls: Iterable[Call]) -> dict[str, Temporary]:
    return {b.name: b for call in calls for b in call.bindings.values() if isinstance(b, Temporary)}


def _scratch(case: Case, bound: Bound) -> int:
    """Bytes of a region's temporaries."""
    return sum(_room(temporary, bound) for temporary in _temporaries(case.calls).values())


def _room(temporary: Temporary, bound: Bound) -> int:
    return padded(bound.size(temporary.bytes) * (bound.threads if temporary.per_thread else 1))


def _add_calls(bound: Bound, segment: Segment, step: Step, case: Case, scratch: int) -> None:
    places: dict[str, int] = {}
    for name, temporary in _temporaries(case.calls).items():
        places[name] = scratch
        scratch += _room(temporary, bound)
    for call in case.calls:
        index = len(segment.entries)
        arguments = []
        for number, parameter in enumerate(call.kernel.parameters):
            found = _resolve(call.bindings[parameter.name], bound, step.site, places)
            if isinstance(found, Late):
                segment.late.append((index, number, found))
            arguments.append(Argument(0 if isinstance(found, Late) else found, isinstance(parameter, Pointer)))
        segment.entries.append(Entry(bound.plan.functions[call.kernel.symbol], arguments))
        segment.steps.append(step)
        segment.kernels.append(call.kernel.name)


def _resolve(binding: Binding, bound: Bound, site: Site, places: Mapping[str, int]) -> int | Late:
    """The address or number of an argument, or where each call finds it."""
    plan = bound.plan
    if isinstance(binding, Temporary):
        return places[binding.name]
    if isinstance(binding, PackedPart):
        weights = tuple(site.actual(value) for value in binding.weights)
        assert all(isinstance(weight, Weight) for weight in weights)
        return plan.constants.packed(binding.layout, weights, binding.part).data_ptr()  # type: ignore[arg-type]
    if isinstance(binding, Data):
        value = site.actual(binding.value)
        return plan.constants.value(value).data_ptr() if value in plan.constants else bound.place(value)
    if isinstance(binding, StatePart | Capacity):
        place = bound.place(site.actual(binding.state))
        assert isinstance(place, Late)
        return Late("state", place.index, binding.part if isinstance(binding, StatePart) else f"#{binding.number}")
    return bound.size(binding)


def _state_argument(state: KVState, part: str) -> int:
    return state.number(part[1:]) if part.startswith("#") else int(state.part(part).data_ptr())
