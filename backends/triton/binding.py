"""A plan for one binding of sizes: calls of kernels with every argument in place but those that a call brings.

Small inputs are copied to rooms of their own, so that kernels find them always at the same address, and so is what
does not begin on 16 bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from irx.backends.regions.buffers import padded
from irx.backends.regions.lowered import Binding, Call, Capacity, Case, Data, PackedPart, StatePart, Temporary
from irx.backends.regions.sites import Site
from irx.backends.regions.steps import Step
from irx.backends.triton.executors import Argument, Prepared
from irx.backends.triton.kernel import ALIGNMENT, Kernel
from irx.ir.dims import Bindings, Dim, evaluate
from irx.ir.graph import Value, Weight
from irx.ir.types import KVType, TensorType
from irx.runtime.profile import Timed
from irx.runtime.tensors import TORCH

if TYPE_CHECKING:
    from irx.backends.triton.plan import Plan

LARGEST_COPIED = 1 << 20  # bytes of an input that every call copies


@dataclass(frozen=True)
class Late:
    """Where a late argument comes from: an input, an output, or a part (or a number) of a state input."""

    kind: str
    index: int
    part: str = ""


@dataclass(eq=False)
class KernelStep:
    """One call of a kernel; `late` are the arguments that only a call of the graph knows."""

    step: Step
    kernel: Kernel
    prepared: Prepared
    late: list[tuple[int, Late]] = field(default_factory=list)
    given: dict[int, tuple[int, int]] = field(default_factory=dict)

    def fill(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Set what is late; arguments that have not moved stay as they are."""
        for number, place in self.late:
            value = _late(place, inputs, outputs)
            at = (1, value) if isinstance(value, int) else (0, value.data_ptr())
            if self.given.get(number) != at:
                self.prepared.set(number, value)
                self.given[number] = at


@dataclass(frozen=True, eq=False)
class TorchStep:
    """A node that torch runs between kernels."""

    step: Step
    run: Callable[..., list[Any]]
    sources: tuple[Value, ...]
    sizes: tuple[Tensor, ...]


class Bound:
    """All that one binding of sizes needs, ready to run. `rooms` hold small inputs, by their numbers."""

    def __init__(self, plan: Plan, sizes: Bindings) -> None:
        self.plan, self.sizes = plan, sizes
        self.steps: list[KernelStep | TorchStep] = []
        self.offsets: list[int] = []
        self._known: dict[Dim, int] = {}
        self.rooms = {i: self._room(v) for i, v in enumerate(plan.all_inputs) if self._is_copied(v)}
        states = [(i, v) for i, v in enumerate(plan.all_outputs) if isinstance(v.type, KVType)]
        self._states = [(i, plan.all_inputs.index(plan.buffers.root[value])) for i, value in states]

    def size(self, dim: Dim) -> int:
        """The number that a size expression has here."""
        if isinstance(dim, int):
            return dim
        if dim not in self._known:
            self._known[dim] = evaluate(dim, self.sizes)
        return self._known[dim]

    def shape(self, type: TensorType) -> list[int]:
        """A tensor's shape here."""
        return [self.size(dim) for dim in type.shape]

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """One call."""
        given, outputs = self.enter(inputs), self.new_outputs()
        self.launch(given, outputs)
        return self.results(given, outputs)

    def launch(self, given: list[Any], outputs: Sequence[Any]) -> None:
        """Run all steps on inputs as kernels take them, into these outputs."""
        for step in self.steps:
            self._run(step, given, outputs)

    def profile(self, inputs: Sequence[Any]) -> list[Timed]:
        """One call, with the time of every step."""
        given, outputs = self.enter(inputs), self.new_outputs()
        times: list[Timed] = []
        for step in self.steps:
            start = self._now()
            self._run(step, given, outputs)
            name = step.kernel.name if isinstance(step, KernelStep) else ""
            site = step.step.site
            times.append(Timed(site.name, site.place, self._now() - start, name))
        return times

    @property
    def large(self) -> list[int]:
        """Inputs that kernels read where they are."""
        tensors = [i for i, value in enumerate(self.plan.all_inputs) if isinstance(value.type, TensorType)]
        return [index for index in tensors if index not in self.rooms]

    def enter(self, inputs: Sequence[Any]) -> list[Any]:
        """Inputs as kernels take them: small ones in their rooms."""
        given = list(inputs)
        for index, value in enumerate(self.plan.all_inputs):
            if index in self.rooms:
                given[index] = self.rooms[index].copy_(inputs[index])
            elif isinstance(value.type, TensorType):
                given[index] = readable(inputs[index])
        return given

    def new_outputs(self) -> list[Any]:
        """New tensors for outputs, None where another step says what they are."""
        return [self._new(i, value) for i, value in enumerate(self.plan.all_outputs)]

    def results(self, given: Sequence[Any], outputs: list[Any]) -> list[Any]:
        """The outputs of a call, once its steps are made."""
        for output, index in self._states:
            outputs[output] = given[index]
        for output in self.plan.buffers.outputs_copied:
            outputs[output] = self.tensor(self.plan.all_outputs[output], given, outputs).clone()
        return outputs

    def tensor(self, value: Value, given: Sequence[Any], outputs: Sequence[Any]) -> Any:
        """A value's tensor (or state) in this call."""
        if value in self.plan.constants:
            return self.plan.constants.value(value)
        place = self.place(value)
        if isinstance(place, Tensor):
            return place
        found = (given if place.kind == "input" else outputs)[place.index]
        return found.view(self.shape(value.tensor)) if isinstance(value.type, TensorType) else found

    def place(self, value: Value) -> Tensor | Late:
        """Where a value's buffer is: a tensor of the arena, or where each call says it is."""
        root = self.plan.buffers.root[value]
        if root in self.plan.buffers.slots:
            dtype = TORCH[value.dtype]
            start = self.offsets[self.plan.buffers.slots[root]]
            size = self.size(value.tensor.elements) * dtype.itemsize
            return self.plan.arena[start : start + size].view(dtype).view(self.shape(value.tensor))
        if root in self.plan.all_inputs:
            index = self.plan.all_inputs.index(root)
            if index in self.rooms:
                return self.rooms[index].view(self.shape(value.tensor))
            return Late("input", index)
        found = next(i for i, out in enumerate(self.plan.all_outputs) if self.plan.buffers.root.get(out) is root)
        return Late("output", found)

    def _run(self, step: KernelStep | TorchStep, given: list[Any], outputs: Sequence[Any]) -> None:
        if isinstance(step, KernelStep):
            step.fill(given, outputs)
            step.prepared.run()
            return
        made = step.run(*(self.tensor(value, given, outputs) for value in step.sources), *step.sizes)
        for value, result in zip(step.step.site.results, made, strict=True):
            if isinstance(value.type, TensorType):
                self.tensor(value, given, outputs).copy_(result)
            else:  # a state whose tokens were chosen is a new one
                given[self.plan.all_inputs.index(self.plan.buffers.root[value])] = result

    def _is_copied(self, value: Value) -> bool:
        if not isinstance(value.type, TensorType):
            return False
        return self.size(value.tensor.elements) * TORCH[value.dtype].itemsize <= LARGEST_COPIED

    def _room(self, value: Value) -> Tensor:
        return torch.empty(self.shape(value.tensor), dtype=TORCH[value.dtype], device=self.plan.device)

    def _new(self, index: int, value: Value) -> Tensor | None:
        """A new output, where every call makes it."""
        if not isinstance(value.type, TensorType) or index in self.plan.buffers.outputs_copied:
            return None
        return self._room(value)

    def _now(self) -> float:
        if self.plan.device.type == "cuda":
            torch.cuda.synchronize(self.plan.device)
        return time.perf_counter()


def readable(tensor: Tensor) -> Tensor:
    """The tensor as kernels take it: itself where it is contiguous and begins on 16 bytes, else a copy."""
    if tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def bind_sizes(plan: Plan, sizes: Mapping[str, int]) -> Bound:
    """The calls of a plan for one binding of sizes."""
    bound = Bound(plan, sizes)
    chosen = [(step, None if step.lowered is None else _case(step, bound)) for step in plan.steps.steps]
    bound.offsets, end = plan.buffers.offsets(bound.size)
    scratch = max((_scratch(case, bound) for _, case in chosen if case is not None), default=0)
    plan.grow(end + scratch)
    for step, case in chosen:
        if case is None:
            sources = tuple(v for v in dict.fromkeys(step.site.operands) if not isinstance(v, Weight))
            run = plan.constants.torch[step]
            shapes = tuple(torch.empty(1, dtype=torch.uint8).expand(sizes[v.name]) for v in run.inputs[len(sources) :])
            bound.steps.append(TorchStep(step, run, sources, shapes))
        else:
            bound.steps += _calls(bound, step, case, end)
    return bound


def _case(step: Step, bound: Bound) -> Case:
    assert step.lowered is not None
    return next(c for c in step.lowered.cases if c.most is None or bound.size(c.size) <= c.most)


def _temporaries(calls: Iterable[Call]) -> dict[str, Temporary]:
    return {b.name: b for call in calls for b in call.bindings.values() if isinstance(b, Temporary)}


def _scratch(case: Case, bound: Bound) -> int:
    """Bytes of a region's temporaries in the arena."""
    return sum(padded(bound.size(t.bytes)) for t in _temporaries(case.calls).values() if not t.zeroed)


def _calls(bound: Bound, step: Step, case: Case, scratch: int) -> list[KernelStep]:
    places: dict[str, Tensor] = {}
    for name, temporary in _temporaries(case.calls).items():
        size = bound.size(temporary.bytes)
        if temporary.zeroed:
            places[name] = bound.plan.zeros(name, size)
            continue
        places[name] = bound.plan.arena[scratch : scratch + max(1, size)]
        scratch += padded(size)
    return [_call(bound, step, call, places) for call in case.calls]


def _call(bound: Bound, step: Step, call: Call, places: Mapping[str, Tensor]) -> KernelStep:
    kernel = call.kernel
    assert isinstance(kernel, Kernel)
    arguments: list[Argument] = []
    late: list[tuple[int, Late]] = []
    for number, parameter in enumerate(kernel.parameters):
        found = _resolve(call.bindings[parameter.name], bound, step.site, places)
        if isinstance(found, Late):
            late.append((number, found))
        arguments.append((0 if found.kind == "number" else bound.plan.arena) if isinstance(found, Late) else found)
    return KernelStep(step, kernel, bound.plan.executor.prepare(kernel, arguments), late)


def _resolve(binding: Binding, bound: Bound, site: Site, places: Mapping[str, Tensor]) -> Argument | Late:
    """The tensor or number of an argument, or where each call finds it."""
    plan = bound.plan
    if isinstance(binding, Temporary):
        return places[binding.name]
    if isinstance(binding, PackedPart):
        weights = tuple(weight for value in binding.weights if isinstance(weight := site.actual(value), Weight))
        return plan.constants.packed(binding.layout, weights, binding.part)
    if isinstance(binding, Data):
        value = site.actual(binding.value)
        return plan.constants.value(value) if value in plan.constants else bound.place(value)
    if isinstance(binding, StatePart | Capacity):
        place = bound.place(site.actual(binding.state))
        assert isinstance(place, Late)
        if isinstance(binding, Capacity):
            return Late("number", place.index, binding.number)
        return Late("state", place.index, binding.part)
    return bound.size(binding)


def _late(place: Late, inputs: Sequence[Any], outputs: Sequence[Any]) -> Argument:
    if place.kind == "number":
        return int(inputs[place.index].number(place.part))
    if place.kind == "state":
        part: Tensor = inputs[place.index].part(place.part)
        return part
    tensor: Tensor = (inputs if place.kind == "input" else outputs)[place.index]
    return tensor
