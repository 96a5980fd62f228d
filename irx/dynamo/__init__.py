"""The torch.compile backend: `torch.compile(model, backend="irx", options={...}, mode=...)`.

Dynamo hands over a graph of torch's functions. It is traced to ATen operators, translated, optimized and built as
`irx.compile` does it with a model; the cache, if there is one, stays the caller's. `options` are keyword arguments of
`irx.compile`. Dynamo's graph runs unchanged, and the reason is said once, where gradients are wanted, under autocast,
and where it cannot be compiled; with IRX_DEBUG=1 the last is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from irx.backends import known_backends
from irx.dynamo.build import Built, build
from irx.dynamo.capture import State
from irx.dynamo.frozen import Frozen
from irx.dynamo.graph import CompiledGraph
from irx.dynamo.notes import give_up, say
from irx.dynamo.settings import Settings, read_settings
from irx.dynamo.tracing import trace
from irx.errors import ExportFailed
from irx.target import Target


def irx_backend(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Compile one of Dynamo's graphs; the function returned takes and gives what the graph does.

    Raises UnknownOption, UnsupportedArgument and the errors of targets and pipelines that cannot be read; PassRefused
    with the option `strict`.
    """
    settings = read_settings(options, mode)
    try:
        reason = _unsuited(graph_module, example_inputs)
        if reason is None:
            return _compile(graph_module, example_inputs, settings)
        say(reason)
    except Exception as error:
        give_up(error)
    return graph_module.forward


def _compile(module: fx.GraphModule, inputs: Sequence[Any], settings: Settings) -> CompiledGraph:
    kind = _device(inputs)
    goal = Target.parse(settings.target or kind, known_backends())
    if goal.device.place != kind:
        raise ExportFailed(f"the target {settings.target!r} is no {kind}, but the model's tensors are on one")
    traced = trace(module, inputs)

    def compile_with(state: State, frozen: Sequence[int]) -> Built:
        return build(traced, state, frozen, goal, settings)

    frozen = Frozen(traced, compile_with)
    frozen.prepare(inputs)
    return CompiledGraph(module, frozen)


def _device(inputs: Sequence[Any]) -> str:
    """The kind of device that the graph runs on: that of its tensors, numbers on the CPU not counted."""
    devices = {value.device for value in inputs if isinstance(value, Tensor) and value.dim() > 0}
    if len(devices) > 1:
        raise ExportFailed(f"the graph's tensors are on several devices: {', '.join(sorted(map(str, devices)))}")
    device = devices.pop() if devices else torch.device("cpu")
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        raise ExportFailed(f"the model is on {device}, which is not torch's current device")
    return device.type


def _unsuited(module: fx.GraphModule, inputs: Sequence[Any]) -> str | None:
    """Why the graph is not to be compiled."""
    wants = any(isinstance(value, Tensor) and value.requires_grad for value in inputs)
    if wants and (torch.is_grad_enabled() or _calls(module, torch._C._set_grad_enabled, True)):
        return "gradients are enabled and an input requires them; such graphs run unchanged, use torch.no_grad()"
    kinds = {value.device.type for value in inputs if isinstance(value, Tensor)}
    if any(map(torch.is_autocast_enabled, kinds)) or _calls(module, torch.amp.autocast_mode._enter_autocast, True):
        return "graphs under autocast run unchanged; convert the model instead, as in model.to(torch.bfloat16)"
    return None


def _calls(module: fx.GraphModule, function: Any, argument: Any) -> bool:
    """True where the graph calls `function` with `argument` among the arguments."""
    calls = module.graph.find_nodes(op="call_function", target=function)
    return any(argument in (*node.args, *node.kwargs.values()) for node in calls)
