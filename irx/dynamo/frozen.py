"""The model's own tensors as constants of a compiled graph, for as long as they do not change.

Dynamo passes parameters and buffers with every call. Their addresses and version counters are compared with those that
a kernel was prepared for:

- parameters that were written to (load_state_dict, an optimizer) or that got other memory (`.data = ...`): the kernel
  is prepared again, and compiled again where a pass had looked at their elements;
- other parameters, as when one graph serves all layers of a model: each set has a kernel of its own, until it dies;
- a buffer that changed: it is an input from then on.

What leaves the version counter alone, as a write through `.data` does, is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from weakref import ref

from torch import Tensor

from irx.dynamo.build import Built, Stamp, stamp
from irx.dynamo.capture import State
from irx.dynamo.tracing import Trace
from irx.runtime.kernel import GraphKernel

Build: TypeAlias = Callable[[State, Sequence[int]], Built]
"""`build(state, frozen)` compiles the graph with the arguments at `frozen` as constants."""


@dataclass(frozen=True)
class Prepared:
    """A kernel with its weights. `tensors` keeps the memory that `stamp` names from being used for anything else."""

    kernel: GraphKernel
    built: Built
    stamp: Stamp
    tensors: Sequence[Tensor]
    parameters: Sequence[ref[Tensor]]


class Frozen:
    """Finds or makes the kernel for the parameters and buffers of a call."""

    def __init__(self, trace: Trace, build: Build) -> None:
        self._trace = trace
        self._build = build
        self._buffers = trace.buffers
        self._indices = (*trace.parameters, *trace.buffers)
        self._prepared: dict[tuple[int, ...], Prepared] = {}
        self._built: Built | None = None
        self._decided_on: Any = None

    def find(self, args: Sequence[Any]) -> Prepared | None:
        """The kernel that was prepared for these arguments, where there is one."""
        found = self._prepared.get(self._key(args))
        return found if found is not None and found.stamp == stamp([args[i] for i in self._indices]) else None

    def prepare(self, args: Sequence[Any]) -> Prepared:
        """A new kernel for these arguments. Raises what building it raises."""
        before = self._prepared.pop(self._key(args), None)
        if before is not None and (changed := self._changed_buffers(args, before)):
            self._buffers = tuple(i for i in self._buffers if i not in changed)
            self._indices = (*self._trace.parameters, *self._buffers)
            self._prepared.clear()
            self._built = None
        tensors = [args[i].detach() for i in self._indices]
        state = State({self._trace.names[i]: t for i, t in zip(self._indices, tensors, strict=True)})
        built = self._built_for(state)
        key = self._key(args)
        references = [ref(args[i], lambda _: self._prepared.pop(key, None)) for i in self._trace.parameters]
        made = self._prepared[key] = Prepared(built.bind(state), built, stamp(tensors), tensors, references)
        return made

    def _key(self, args: Sequence[Any]) -> tuple[int, ...]:
        return tuple([id(args[i]) for i in self._trace.parameters])

    def _changed_buffers(self, args: Sequence[Any], before: Prepared) -> set[int]:
        start = len(self._trace.parameters)
        was = list(zip(*before.stamp, strict=True))[start:]
        now = zip(*stamp([args[i] for i in self._buffers]), strict=True)
        return {i for i, a, b in zip(self._buffers, was, now, strict=True) if a != b}

    def _built_for(self, state: State) -> Built:
        """What was compiled before, where everything that was decided then is still true."""
        if self._built is None or self._facts(state, self._built) != self._decided_on:
            self._built = self._build(state, self._indices)
            self._decided_on = self._facts(state, self._built)
        return self._built

    def _facts(self, state: State, built: Built) -> Any:
        """Which tensors are one, and what passes looked at."""
        addresses = [(t.data_ptr(), t.shape, t.stride(), t.dtype) for t in state.tensors.values()]
        looked_at = stamp([state.tensors[name] for name in sorted(built.decisive)])
        return [addresses.index(each) for each in addresses], looked_at
