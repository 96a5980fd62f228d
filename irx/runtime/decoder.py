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
    """`prefill` for any number of tokens, `decode` for one in every row, `encode` where there is an encoder.

    `lock` is the executable's: calls on one executable run one after the other.
    """

    prefill: GraphKernel
    decode: GraphKernel
    encode: GraphKernel | None
    meta: Mapping[str, Any]
    device: torch.device
    max_batch: int | None
    max_length: int | None
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

    def run(self, kernel: GraphKernel, tensors: Mapping[str, Tensor], states: dict[str, KVState]) -> Tensor:
        """The logits of one step; `states` hold the new tokens afterwards."""
        inputs = self._ordered(kernel, tensors, states)
        with self.lock, torch.no_grad():
            results = dict(zip(kernel.output_names, kernel(*inputs), strict=True))
        for name in states:
            states[name] = results[name]
            states[name].settle()
        logits: Tensor = results[self.meta["logits"]]
        return logits

    def repeated(self, tensors: Mapping[str, Tensor], states: Mapping[str, KVState]) -> Repeated | None:
        """The step of decoding that has just run, to be made again with other tokens."""
        return self.decode.repeated(self._ordered(self.decode, tensors, states), self.meta["ids"], "pos")

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
        """The names of the inputs of both graphs, in order: read here once, as a step is made of little else."""
        return {kernel.name: [value.name for value in kernel.inputs] for kernel in (self.prefill, self.decode)}
