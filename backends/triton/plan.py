"""A graph on a GPU (or, interpreted, on the CPU): calls of kernels, bound to buffers for every binding of sizes.

Weights are packed when they are bound. For each binding of named sizes the calls are prepared once; a call of the graph
then sets the addresses of its large inputs, its outputs and its KV states, and launches one kernel after the other, or
replays them (`irx.backends.triton.capture`). What no kernel serves is run by torch in between.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from irx.backends.regions.buffers import plan_buffers
from irx.backends.regions.constants import Constants
from irx.backends.regions.report import fallbacks
from irx.backends.regions.slots import Placed
from irx.backends.regions.states import States
from irx.backends.regions.steps import Steps
from irx.backends.torch.binding import SizeReader
from irx.backends.torch.plan import Plan as TorchPlan
from irx.backends.triton.binding import Bound, bind_sizes
from irx.backends.triton.capture import Recorder, record_cuda
from irx.backends.triton.executors import Executor
from irx.backends.triton.repeated import Repeated, repeated
from irx.backends.triton.report import rows
from irx.backends.triton.usage import Usage
from irx.errors import GpuOutOfMemory, InputMismatch
from irx.ir.graph import Value
from irx.ir.regions import expanded
from irx.ledger import Row
from irx.runtime.kv import KVState
from irx.runtime.profile import Timed
from irx.runtime.store import WeightStore
from irx.target import Device

BINDINGS_KEPT = 32


class Plan:
    """One graph, ready to run. See `irx.runtime.kernel.GraphKernel`."""

    def __init__(
        self, placed: Placed, steps: Steps, executor: Executor, target: Device, usages: Mapping[str, Usage]
    ) -> None:
        """`usages` are what is known of the binaries for `target`, by symbol."""
        graph = placed.graph
        self.name = graph.name
        self.all_inputs: Sequence[Value] = tuple(graph.inputs)
        self.inputs: Sequence[Value] = self.all_inputs[: len(graph.inputs) - len(placed.slots)]
        self.all_outputs: Sequence[Value] = tuple(graph.outputs)
        self.outputs: Sequence[Value] = self.all_outputs[: len(graph.outputs) - placed.told]
        self.output_names: Sequence[str] = tuple(graph.output_names[: len(self.outputs)])
        self.graph = graph
        self.steps = steps
        self.executor = executor
        self.target, self.usages = target, usages
        self.device = executor.device
        self.buffers = plan_buffers(graph, steps.order, steps.constants)
        self.constants = Constants(steps)
        self.arena = torch.empty(0, dtype=torch.uint8, device=self.device)
        self._zeros: dict[tuple[str, int], Tensor] = {}
        self._states = States(placed)
        self._sizes = SizeReader(graph.inputs)
        recordable = self.device.type == "cuda" and all(step.lowered is not None for step in steps.steps)
        self._recorder = Recorder(self.all_inputs, record_cuda if recordable else None)
        self._bound: OrderedDict[tuple[int, ...], Bound] = OrderedDict()
        self._whole: TorchPlan | None = None
        self._store: WeightStore | None = None

    def bind(self, store: WeightStore) -> None:
        """Pack the weights and compute what depends on them only."""
        self._store = store
        if self.executor.absent is None:
            try:
                self.constants.bind(store)
            except torch.OutOfMemoryError as error:
                raise self._full(()) from error
        self._bound.clear()

    def __call__(self, *inputs: Any) -> list[Any]:
        """The outputs in order. KV states are changed in place. Raises NoGpu, OtherArchitecture,
        GpuOutOfMemory."""
        if self.executor.absent is not None:
            raise self.executor.absent
        try:
            if not self._states.make_room(inputs):
                return self._by_torch(inputs)
            given = (*inputs, *self._states.slots(inputs))
            return self._states.settle(inputs, self._recorder.run(self.prepared(given), given))
        except torch.OutOfMemoryError as error:
            raise self._full(inputs) from error

    def repeated(self, inputs: Sequence[Any], ids: str, positions: str) -> Repeated | None:
        """A call like the last one, which had these inputs, once that is recorded."""
        if self._states.told or any(inputs[i].positions is not None for i in self._states.indices):
            return None
        bound = self.prepared(inputs)
        recording = self._recorder.known(bound)
        return None if recording is None else repeated(self, bound, recording, ids, positions)

    def holds(self, bound: Bound) -> bool:
        """True while the buffers of these sizes are in use."""
        return bound in self._bound.values()

    def report(self) -> list[Row]:
        """Kernels and what each takes, launches, what is left to torch, and memory, as rows of the ledger."""
        return rows(self.steps, self.buffers, self.usages, self.target)

    @property
    def fallbacks(self) -> dict[str, str]:
        """Nodes that torch runs, each with the reason."""
        return fallbacks(self.steps)

    def profile(self, *inputs: Any) -> list[Timed]:
        """The time of every step of one call; KV states are changed in place."""
        if not self._states.make_room(inputs):
            raise InputMismatch("kernels do not read states whose tokens lie in no order")
        given = (*inputs, *self._states.slots(inputs))
        return self.prepared(given).profile(given)

    @property
    def bytes(self) -> int:
        """Bytes of the arena, and of what is kept zeroed."""
        return self.arena.numel() + sum(buffer.numel() for buffer in self._zeros.values())

    def grow(self, size: int) -> None:
        """An arena of at least `size` bytes; a larger one takes the place of the old."""
        if size > self.arena.numel():
            self._bound.clear()
            self.arena = torch.zeros(size, dtype=torch.uint8, device=self.device)

    def zeros(self, name: str, size: int) -> Tensor:
        """A buffer of zeros that kernels leave as zeros: one of a name and size serves all regions in turn."""
        if (name, size) not in self._zeros:
            self._zeros[name, size] = torch.zeros(max(1, size), dtype=torch.uint8, device=self.device)
        return self._zeros[name, size]

    @property
    def recorded(self) -> int:
        """Calls that are replayed as CUDA graphs."""
        return self._recorder.recorded

    def prepared(self, inputs: Sequence[Any]) -> Bound:
        """The calls for these inputs' sizes."""
        key = self._sizes.read(inputs)
        bound = self._bound.get(key)
        if bound is None:
            bound = bind_sizes(self, self._sizes.named(key))
            while len(self._bound) >= BINDINGS_KEPT:
                self._bound.popitem(last=False)
            self._bound[key] = bound
        self._bound.move_to_end(key)
        return bound

    def _full(self, inputs: Sequence[Any]) -> GpuOutOfMemory:
        """What takes the memory: weights, the caches of this call, buffers."""
        parts = self._store.parts() if self._store is not None else {}
        named = zip(self.inputs, inputs, strict=False)
        parts |= {f"cache {value.name}": state.bytes for value, state in named if isinstance(state, KVState)}
        parts[f"buffers of @{self.name}"] = self.bytes
        free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0
        return GpuOutOfMemory(free, parts)

    def _by_torch(self, inputs: Sequence[Any]) -> list[Any]:
        """States that were gathered, or changed behind their end, are followed by torch's kernels alone."""
        if self._whole is None:
            assert self._store is not None
            self._whole = TorchPlan(expanded(self.graph), self.device)
            self._whole.bind(self._store)
        return self._whole(*inputs, *self._states.unused(inputs))[: len(self.outputs)]
