"""From the arguments of a call to the inputs of `forward`, checked against its types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from irx.errors import BatchTooLarge, InputMismatch, PromptTooLong, UnsupportedArgument
from irx.ir.dims import Dim, Range, SymDim, evaluate
from irx.ir.graph import Value
from irx.ir.types import INTEGERS, TensorType
from irx.runtime.tensors import IR, TORCH

_IGNORED = ("use_cache", "return_dict", "logits_to_keep")
_FILLED = {"mask": 1, "decoder_mask": 1, "token_types": 0}  # what a model takes when these are left out


class Arguments:
    """How the arguments of the captured forward become the inputs of a graph.

    `meta` is the program's: `inputs` (name and role of each), `parameters` (names of forward's positional arguments),
    `arguments` (plain values that were fixed at capture).
    """

    def __init__(
        self, inputs: Sequence[Value], meta: Mapping[str, Any], sizes: Mapping[str, Range], device: str
    ) -> None:
        self.inputs = {value.name: value for value in inputs}
        self.roles = {item["name"]: item["role"] for item in meta.get("inputs", ())}
        self.parameters = list(meta.get("parameters", ()))
        self.fixed = dict(meta.get("arguments", {}))
        self.causal = bool(meta.get("causal"))
        self.sizes = sizes
        self.device = device

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """Inputs in the order of the graph. Raises UnsupportedArgument, InputMismatch, BatchTooLarge, PromptTooLong."""
        given = self._named(args, kwargs)
        tensors = {name: value for name, value in given.items() if name in self.inputs and value is not None}
        for name, value in given.items():
            if name not in self.inputs:
                self._check_extra(name, value, tensors)
        filled = {name: self._input(value, tensors) for name, value in self.inputs.items()}
        self._check_sizes(filled)
        return list(filled.values())

    def _named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        names = self.parameters or list(self.inputs)
        if len(args) > len(names):
            names = [*names, *(name for name in self.inputs if name not in names)]
        if len(args) > len(names):
            raise UnsupportedArgument(f"{len(args)} positional arguments, but forward takes {', '.join(names)}")
        named = dict(zip(names, args, strict=False))
        twice = named.keys() & kwargs.keys()
        if twice:
            raise UnsupportedArgument(f"{', '.join(sorted(twice))} is given by position and by name")
        return {**named, **kwargs}

    def _check_extra(self, name: str, value: Any, tensors: Mapping[str, Tensor]) -> None:
        """An argument that is no input changes nothing, or cannot be honoured."""
        if value is None or name in _IGNORED:
            return
        if name in self.fixed and not isinstance(value, Tensor) and value == self.fixed[name]:
            return
        if name == "attention_mask" and isinstance(value, Tensor) and self._hides_nothing(value):
            return
        was = f"captured as {self.fixed[name]!r}" if name in self.fixed else "not captured"
        raise UnsupportedArgument(
            f"the argument {name!r} was {was}, so this compiled model cannot honour it",
            fix=f"compile with it in the example; captured inputs: {', '.join(self.inputs)}",
        )

    def _hides_nothing(self, mask: Tensor) -> bool:
        """True for ones, and for padding on the right of a causal model, which no real token sees."""
        marks = mask != 0
        return bool(marks.all()) or (self.causal and mask.dim() == 2 and bool((marks[:, :-1] >= marks[:, 1:]).all()))

    def _input(self, value: Value, tensors: Mapping[str, Tensor]) -> Tensor:
        found = tensors.get(value.name)
        if found is None:
            return self._filled(value, tensors)
        if not isinstance(found, Tensor):
            raise InputMismatch(f"input {value.name!r} is a {type(found).__name__}, not a tensor")
        return self._fitting(value, found)

    def _filled(self, value: Value, tensors: Mapping[str, Tensor]) -> Tensor:
        """Ones for a mask and zeros for token types that were left out, as the model itself has it."""
        filling = _FILLED.get(self.roles.get(value.name, ""))
        like = next((t for name, t in tensors.items() if self.inputs[name].shape[:2] == value.shape), None)
        if filling is None or like is None:
            raise InputMismatch(
                f"input {value.name!r}: {value.type} is missing", fix=f"inputs: {', '.join(self.inputs)}"
            )
        return torch.full(like.shape[:2], filling, dtype=TORCH[value.dtype], device=self.device)

    def _fitting(self, value: Value, found: Tensor) -> Tensor:
        check_device(value.name, found, self.device)
        dtype = IR.get(found.dtype, str(found.dtype))
        if dtype != value.dtype and not (dtype in ("bool", *INTEGERS) and value.dtype in INTEGERS):
            raise InputMismatch(f"input {value.name!r} is {dtype}, but {value.type} is needed")
        if found.dim() != value.tensor.rank:
            raise InputMismatch(f"input {value.name!r} has shape {list(found.shape)}, but {value.type} is needed")
        return found.to(TORCH[value.dtype]).detach()

    def _check_sizes(self, filled: Mapping[str, Tensor]) -> None:
        found: dict[str, int] = {}
        pairs = [
            (name, dim, size)
            for name, tensor in filled.items()
            for dim, size in zip(self.inputs[name].shape, tensor.shape, strict=True)
        ]
        for name, dim, size in pairs:
            if isinstance(dim, SymDim) and dim.text.isidentifier() and found.setdefault(dim.text, size) == size:
                self._check_range(name, dim.text, size)
        for name, dim, size in pairs:
            if _value(dim, found, size) != size:
                means = f"{self.inputs[name].type}" + (f" with {found}" if found else "")
                raise InputMismatch(f"input {name!r} has shape {list(filled[name].shape)}, but is {means}")

    def _check_range(self, name: str, size: str, value: int) -> None:
        limits = self.sizes.get(size, Range())
        if value in limits:
            return
        if limits.high is not None and value > limits.high and size in ("B", "S"):
            raise (BatchTooLarge if size == "B" else PromptTooLong)(value, limits.high, where=f"input {name!r}")
        raise InputMismatch(f"input {name!r} has size {size} = {value}, outside [{limits.low}, {limits.high or 'inf'}]")


def check_device(name: str, tensor: Tensor, device: str) -> None:
    """Raises InputMismatch for a tensor on another kind of device than the compiled model."""
    if tensor.device.type != torch.device(device).type:
        fix = f"move it: {name}.to({device!r})"
        raise InputMismatch(f"input {name!r} is on {tensor.device}, the compiled model on {device}", fix=fix)


def _value(dim: Dim, found: Mapping[str, int], size: int) -> int:
    """What `dim` must be; whatever it is where it depends on a size that no axis shows by itself."""
    try:
        return evaluate(dim, found)
    except KeyError:
        return size


def kept_rows(logits: Tensor, keep: Any) -> Tensor:
    """`logits` [B, S, V] for `logits_to_keep`: the last rows for a number, those named for a tensor, all for 0."""
    if isinstance(keep, Tensor):
        return logits[:, keep]
    return logits[:, -keep:] if keep else logits


def is_tensor(value: Value) -> bool:
    """True for a value that is a tensor, not a KV state."""
    return isinstance(value.type, TensorType)
