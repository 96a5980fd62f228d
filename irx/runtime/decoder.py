"""The cached graphs of a language model: what a step of them takes and gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from threading import RLock
from typing import Any

import torch
from torch import Tensor

from irx.ir.graph import Value
from irx.ir.types import KVType
from irx.runtime.kernel import GraphKernel, Repeated
from irx.runtime.kv import KVState, empty_state
from irx.runtime.kv_kept import Kept
from irx.runtime.profile import Profile, merged


@dataclass
class Decoder:
    """`prefill` for any number of tokens, `decode` for one in every row, `encode` where there is an encoder; `top` is
    like `decode`, but gives the likeliest tokens in place of logits.

    `lock` is the executable's: calls on one executable run one after the other.
    """

    prefill: GraphKernel
    decode: GraphKernel
    encode: GraphKernel | None
    meta: Mapping[str, Any]
    device: torch.device
    max_batch: int | None
    max_length: int | None
    top: GraphKernel | None = None
    lock: RLock = field(default_factory=RLock)

    def states(self, batch: int) -> dict[str, KVState]:
        """Empty KV states by name. Those that get some tokens of a prompt only say which position each slot holds."""
        found = {v.name: v.type for v in self.prefill.inputs if isinstance(v.type, KVType)}
        states = {name: empty_state(kind, batch, self.device) for name, kind in found.items()}
        for name in self.meta.get("partial", ()):
            states[name].kept = Kept.nothing(batch, states[name].keys.heads, self.device)
        return states

    @cached_property
    def shares_prefixes(self) -> bool:
        """True when all states may begin with the tokens of another one."""
        kinds = [value.type for value in self.prefill.inputs if isinstance(value.type, KVType)]
        return bool(kinds) and all(kind.prefix for kind in kinds)

    @cached_property
    def ids(self) -> Value:
        """The input that takes the tokens."""
        return next(value for value in self.prefill.inputs if value.name == self.meta["ids"])

    @cached_property
    def slices_rows(self) -> bool:
        """True when `prefill` is told which rows to compute logits for."""
        return any(value.name == self.meta.get("rows") for value in self.prefill.inputs)

    def encoded(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """What the encoder makes of its inputs; they become inputs of the other graphs."""
        if self.encode is None:
            return {}
        with self.lock, torch.no_grad():
            return dict(zip(self.encode.output_names, self.encode(*inputs), strict=True))

    @cached_property
    def most_chosen(self) -> int:
        """How many of the likeliest tokens `top` gives; 0 where there is none."""
        return 0 if self.top is None else int(str(self.top.outputs[0].shape[-1]))

    @cached_property
    def logits(self) -> Mapping[str, int]:
        """The place of the logits among the tensors that a graph gives, by the graph's name."""
        return {kernel.name: _tensors(kernel).index(self.meta["logits"]) for kernel in (self.prefill, self.decode)}

    def run(self, kernel: GraphKernel, tensors: Mapping[str, Tensor], states: dict[str, KVState]) -> list[Tensor]:
        """The tensors that one step gives, in the order of its graph; `states` hold the new tokens afterwards."""
        inputs = self._ordered(kernel, tensors, states)
        with self.lock, torch.no_grad():
            results = dict(zip(kernel.output_names, kernel(*inputs), strict=True))
        for name in states:
            states[name] = results[name]
            states[name].settle()
        return [result for result in results.values() if isinstance(result, Tensor)]

    def repeated(
        self, kernel: GraphKernel, tensors: Mapping[str, Tensor], states: Mapping[str, KVState]
    ) -> Repeated | None:
        """The step of decoding that has just run, to be made again with other tokens: under the lock of that run."""
        return kernel.repeated(self._ordered(kernel, tensors, states), self.meta["ids"], "pos")

    def profile(
        self, kernel: GraphKernel, tensors: Mapping[str, Tensor], states: Mapping[str, KVState], repeat: int
    ) -> Profile:
        """Where the time of that step goes, over `repeat` runs after one more. States are written to in place."""
        inputs = self._ordered(kernel, tensors, states)
        with self.lock, torch.no_grad():
            kernel.profile(*inputs)
            return merged([kernel.profile(*inputs) for _ in range(max(1, repeat))])

    def _ordered(self, kernel: GraphKernel, tensors: Mapping[str, Tensor], states: Mapping[str, KVState]) -> list[Any]:
        values = {**tensors, **states}
        return [values[name] for name in self._inputs[kernel.name]]

    @cached_property
    def _inputs(self) -> dict[str, list[str]]:
        """The names of the graphs' inputs, in order: read here once, as a step is made of little else."""
        kernels = (self.prefill, self.decode, *([self.top] if self.top is not None else []))
        return {kernel.name: [value.name for value in kernel.inputs] for kernel in kernels}


def _tensors(kernel: GraphKernel) -> list[str]:
    """The names of the tensors that a graph gives."""
    named = zip(kernel.output_names, kernel.outputs, strict=True)
    return [name for name, value in named if not isinstance(value.type, KVType)]
