"""From one of Dynamo's graphs, which calls functions of torch, to one of ATen operators with the types of every value.

Dynamo's graph is run once more in Dynamo's own fake mode, so that symbolic sizes stay what they are. Attention, linears
and norms stay single operators, in-place operators stay in place; modules and source lines are kept on the nodes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from irx.errors import ExportFailed
from irx.frontends.torch_export.mutation import written_argument


@dataclass(frozen=True)
class Trace:
    """A traced graph. `module` has one placeholder per input; `names` are theirs, from the model where they belong to
    it. `parameters` and `buffers` are the positions of inputs that belong to the model and that the graph only reads.
    """

    module: fx.GraphModule
    names: tuple[str, ...]
    parameters: tuple[int, ...]
    buffers: tuple[int, ...]

    @property
    def placeholders(self) -> list[fx.Node]:
        """The placeholders in order."""
        return _placeholders(self.module)

    @property
    def outputs(self) -> list[Any]:
        """What the graph returns, in order: fake tensors, sizes, plain values."""
        (node,) = self.module.graph.find_nodes(op="output")
        return [item.meta["val"] if isinstance(item, fx.Node) else item for item in node.args[0]]


def trace(module: fx.GraphModule, inputs: Sequence[Any]) -> Trace:
    """Trace Dynamo's graph. Raises ExportFailed for inputs that are no plain tensors, and what torch raises."""
    _check(inputs)
    mode = detect_fake_mode(inputs) or FakeTensorMode()
    fakes = [_fake(mode, value) for value in inputs]

    def run(*values: Any) -> Any:
        return fx.Interpreter(module).run(*values)

    with torch.no_grad(), mode, fx.traceback.preserve_node_meta():
        traced = make_fx(run, pre_dispatch=True)(*fakes)
    state = _state(module, traced, inputs)
    parameters = tuple(i for i in state if isinstance(inputs[i], torch.nn.Parameter))
    names = _unique(map(_name, _placeholders(module)))
    return Trace(traced, names, parameters, tuple(i for i in state if i not in parameters))


def _placeholders(module: fx.GraphModule) -> list[fx.Node]:
    return list(module.graph.find_nodes(op="placeholder"))


def _check(inputs: Sequence[Any]) -> None:
    for value in inputs:
        if isinstance(value, Tensor) and (is_traceable_wrapper_subclass(value) or value.layout != torch.strided):
            raise ExportFailed(
                f"an input is a {type(value).__name__} of layout {value.layout}, which IRX does not read"
            )


def _fake(mode: FakeTensorMode, value: Any) -> Any:
    """The fake tensor that Dynamo made for this one."""
    return mode.from_tensor(value) if isinstance(value, Tensor) and not isinstance(value, FakeTensor) else value


def _state(module: fx.GraphModule, traced: fx.GraphModule, inputs: Sequence[Any]) -> list[int]:
    """Positions of the model's own tensors that the graph does not write to."""
    written = {_storage(node) for node in map(_written, traced.graph.nodes) if node is not None}
    pairs = zip(_placeholders(module), _placeholders(traced), inputs, strict=True)
    return [
        i for i, (node, fake, value) in enumerate(pairs) if _is_state(node, value) and _storage(fake) not in written
    ]


def _is_state(node: fx.Node, value: Any) -> bool:
    """A real parameter, or tensor attribute of a module, whose changes torch counts."""
    if not isinstance(value, Tensor) or isinstance(value, FakeTensor) or value.is_meta or value.is_inference():
        return False
    kind = node.meta.get("tensor_dict", {}).get("_dynamo_static_input_type")
    return isinstance(value, torch.nn.Parameter) or kind == "unguarded"


def _written(node: fx.Node) -> fx.Node | None:
    return None if node.target is torch.ops.aten.detach_.default else written_argument(node)


def _storage(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    return int(value.untyped_storage()._cdata) if isinstance(value, Tensor) else None


def _name(node: fx.Node) -> str:
    """`model.norm.weight` for `L['self']._modules['model']._modules['norm']._parameters['weight']`; for what is no
    parameter or buffer, Dynamo's name of the placeholder without its frame."""
    source = getattr(getattr(node.meta.get("grapharg"), "source", None), "name", "")
    text = source() if callable(source) else source
    path = re.findall(r"_(?:modules|parameters|buffers)\['([^']+)'\]", text)
    return ".".join(path) if path else node.name.removeprefix("l_").removeprefix("kwargs_").strip("_")


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for name in names:
        count = 1
        unique = name
        while unique in found:
            count += 1
            unique = f"{name}_{count}"
        found[unique] = None
    return tuple(found)
