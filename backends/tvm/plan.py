"""A graph on a CPU: kernels in tables that one native call walks, bound to buffers for every binding of sizes.

Weights are packed when they are bound. For each binding of named sizes (and number of threads) the tables are made
once; a call then only puts the addresses of its inputs, outputs and KV states into them. What no kernel serves is run
by torch between two tables.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from irx.backends.regions import report
from irx.backends.regions.buffers import plan_buffers
from irx.backends.regions.constants import Constants
from irx.backends.regions.slots import Placed
from irx.backends.regions.states import States
from irx.backends.regions.steps import Steps
from irx.backends.torch.binding import SizeReader
from irx.backends.torch.plan import Plan as TorchPlan
from irx.backends.tvm.binding import Bound, bind_sizes
from irx.backends.tvm.native import load
from irx.backends.tvm.repeated import Repeated, repeated
from irx.errors import InputMismatch
from irx.ir.graph import Value
from irx.ir.regions import expanded
from irx.ledger import Row
from irx.runtime.arena import STATES
from irx.runtime.profile import Timed
from irx.runtime.store import WeightStore

BINDINGS_KEPT = 32


class Plan:
    """One graph, ready to run. See `irx.runtime.kernel.GraphKernel`."""

    def __init__(self, placed: Placed, steps: Steps, objects: Mapping[str, bytes]) -> None:
        graph = placed.graph
        self.name = graph.name
        self.all_inputs: Sequence[Value] = tuple(graph.inputs)
        self.inputs: Sequence[Value] = self.all_inputs[: len(graph.inputs) - len(placed.slots)]
        self.all_outputs: Sequence[Value] = tuple(graph.outputs)
        self.outputs: Sequence[Value] = self.all_outputs[: len(graph.outputs) - placed.told]
        self.output_names: Sequence[str] = tuple(graph.output_names[: len(self.outputs)])
        self.graph = graph
        self.steps = steps
        self.functions = load(objects)
        self.buffers = plan_buffers(graph, steps.order, steps.constants)
        self.constants = Constants(steps)
        self.arena = torch.empty(0, dtype=torch.uint8)
        self._states = States(placed)
        self._sizes = SizeReader(graph.inputs)
        self._bound: OrderedDict[tuple[int, ...], Bound] = OrderedDict()
        self._whole: TorchPlan | None = None
        self._store: WeightStore | None = None

    def bind(self, store: WeightStore) -> None:
        """Pack the weights and compute what depends on them only."""
        self._store = store
        self.constants.bind(store)
        self._bound.clear()

    def __call__(self, *inputs: Any) -> list[Any]:
        """The outputs in order. KV states are changed in place."""
        if not self._states.make_room(inputs):
            return self._by_torch(inputs)
        given = (*inputs, *self._states.slots(inputs))
        return self._states.settle(inputs, self._prepared(given).run(given))

    def repeated(self, inputs: Sequence[Any], ids: str, positions: str) -> Repeated | None:
        """A call like the last one, which had these inputs."""
        if self._states.told or any(inputs[i].positions is not None for i in self._states.indices):
            return None
        return repeated(self, self._prepared(inputs), ids, positions)

    def holds(self, bound: Bound) -> bool:
        """True while the tables of these sizes are in use."""
        return bound in self._bound.values()

    def report(self) -> list[Row]:
        """Kernels, what is left to torch, and memory, as rows of the ledger."""
        return report.rows(self.steps, self.buffers)

    @property
    def fallbacks(self) -> dict[str, str]:
        """Nodes that torch runs, each with the reason."""
        return report.fallbacks(self.steps)

    def profile(self, *inputs: Any) -> list[Timed]:
        """The time of every step of one call; KV states are changed in place."""
        if not self._states.make_room(inputs):
            raise InputMismatch("kernels do not read states whose tokens lie in no order")
        given = (*inputs, *self._states.slots(inputs))
        return self._prepared(given).profile(given)

    @property
    def bytes(self) -> int:
        """Bytes of the arena."""
        return self.arena.numel()

    def grow(self, size: int) -> int:
        """The address of an arena of at least `size` bytes; a larger one takes the place of the old."""
        if size > self.arena.numel():
            self._bound.clear()
            self.arena = torch.from_numpy(STATES.zeros(size))
        return self.arena.data_ptr()

    def _prepared(self, inputs: Sequence[Any]) -> Bound:
        """The tables for these inputs' sizes."""
        sizes = self._sizes.read(inputs)
        key = (*sizes, torch.get_num_threads())
        bound = self._bound.get(key)
        if bound is None:
            bound = bind_sizes(self, self._sizes.named(sizes), key[-1])
            while len(self._bound) >= BINDINGS_KEPT:
                self._bound.popitem(last=False)
            self._bound[key] = bound
        self._bound.move_to_end(key)
        return bound

    def _by_torch(self, inputs: Sequence[Any]) -> list[Any]:
        """States that were gathered, or changed behind their end, are followed by torch's kernels alone."""
        if self._whole is None:
            assert self._store is not None
            self._whole = TorchPlan(expanded(self.graph), torch.device("cpu"))
            self._whole.bind(self._store)
        return self._whole(*inputs, *self._states.unused(inputs))[: len(self.outputs)]
