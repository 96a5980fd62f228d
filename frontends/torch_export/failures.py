"""What went wrong while tracing, as errors that name the module and the source line."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode, UnsupportedFakeTensorException
from torch.utils import _pytree as pytree

from irx.errors import DataDependentControlFlow, ExampleMismatch, ExportFailed, IRXError
from irx.frontends.torch_export.example import Example

_DATA_DEPENDENT = ("GuardOnDataDependentSymNode", "DataDependentOutputException", "DynamicOutputShapeException")
_TORCH = str(Path(torch.__file__).parent)
_REJECTIONS = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)


def explain(error: Exception, model: torch.nn.Module, example: Example, original: Example) -> IRXError:
    """The user's error for an exception of `torch.export`: whose fault it is, where, and what to do.

    `example` is what was traced, `original` what the user gave.
    """
    cause = _innermost(error)
    where = place(cause, model) or place(error, model)
    text = _first_lines(cause)
    if any(kind in (type(cause).__name__, type(error).__name__) for kind in _DATA_DEPENDENT):
        return DataDependentControlFlow(
            f"the model branches on the value of a tensor, which one graph cannot express ({text})",
            where=where,
            fix="use torch.where, or compute the condition from shapes",
        )
    if isinstance(cause, _REJECTIONS) and (rejection := _rejection(model, original)) is not None:
        return ExampleMismatch(
            f"the model rejects the example {shapes_of(original)}: {_first_lines(rejection)}",
            where=place(rejection, model) or where,
            fix="give an example that model(*example) accepts",
        )
    if example.enlarged:
        return ExampleMismatch(
            f"the model rejects {_enlarged(example)} enlarged from size 1: {text}",
            where=where,
            fix="give an example with sizes of 2 or more, or compile with dynamic=False",
        )
    return ExportFailed(f"the model cannot be traced: {type(cause).__name__}: {text}", where=where, fix=_advice(cause))


def place(error: BaseException, model: torch.nn.Module) -> str | None:
    """`model.layers.3 (net.py:41)`: the innermost module whose code was running, and the line outside torch."""
    names = {id(module): name for name, module in model.named_modules()}
    module, line = None, None
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        owner = frame.f_locals.get("self")
        file = frame.f_code.co_filename
        if isinstance(owner, torch.nn.Module) and id(owner) in names:
            module = names[id(owner)] or type(model).__name__
        if module is not None and not file.startswith(_TORCH) and "<" not in file:
            line = f"{Path(file).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    if module is None:
        return None
    return f"{module} ({line})" if line else module


def shapes_of(example: Example) -> str:
    """`input_ids=i64[2, 16]`, for messages."""
    return ", ".join(f"{name}={_shape(value)}" for name, value in example.named().items())


def _shape(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return repr(value) if isinstance(value, (bool, int, float, str, type(None))) else type(value).__name__


def _enlarged(example: Example) -> str:
    return ", ".join(f"axis {axis} of {name}" for name, axis in example.enlarged)


def _rejection(model: torch.nn.Module, original: Example) -> Exception | None:
    """What the model itself says to the example as it was given; None where it accepts it.

    Fake tensors are asked first, as they compute nothing; what they refuse is run, where it can be.
    """
    rejection = _fake_rejection(model, original)
    if rejection is None or any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        return rejection
    try:
        with torch.no_grad():
            model(*original.args, **original.kwargs)
    except _REJECTIONS:
        return rejection
    return None


def _fake_rejection(model: torch.nn.Module, original: Example) -> Exception | None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(value: Any) -> Any:
        return mode.from_tensor(value) if isinstance(value, torch.Tensor) else value

    args, kwargs = pytree.tree_map(fake, (original.args, original.kwargs))
    try:
        with torch.no_grad(), mode:
            model(*args, **kwargs)
    except UnsupportedFakeTensorException:
        return None  # it asks for a value, which says nothing about the shapes
    except _REJECTIONS as error:
        return error
    return None


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_lines(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(error).__name__


def _advice(error: BaseException) -> str:
    if "AttributeError" in type(error).__name__:
        return "check that the model runs in eager mode"
    return "torch.export.export(model, args, strict=False) has to succeed"
