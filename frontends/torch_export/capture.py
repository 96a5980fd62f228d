"""Any `nn.Module` as a program: traced by `torch.export` with symbolic sizes, translated operator by operator.

Tracing is non-strict, without gradients and in evaluation mode. The traced graph is translated as it is, in-place
operators included; functionalisation by torch, which takes longer than everything else, is only used for graphs that
write into memory in a way that `mutation.py` does not follow.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from irx.errors import ExampleMismatch, IRXError, NotAModule
from irx.frontends.torch_export.example import Example, ExampleLike, bind_example, dynamic_example
from irx.frontends.torch_export.failures import explain, shapes_of
from irx.frontends.torch_export.mutation import NotFunctional
from irx.frontends.torch_export.outputs import describe, output_tree
from irx.frontends.torch_export.tensors import torch_dtype
from irx.frontends.torch_export.translate import Translation, translate
from irx.frontends.torch_export.unloaded import stand_ins
from irx.ir.dims import SymDim
from irx.ir.program import Program

Unloaded: TypeAlias = Mapping[int, torch.Tensor]

_ROLES = {
    "input_ids": "ids",
    "attention_mask": "mask",
    "decoder_input_ids": "decoder_ids",
    "decoder_attention_mask": "decoder_mask",
    "position_ids": "positions",
    "token_type_ids": "token_types",
    "pixel_values": "image",
    "input_features": "features",
    "inputs_embeds": "embeddings",
}


def capture(
    model: torch.nn.Module,
    example: ExampleLike | None = None,
    *,
    dynamic: bool = True,
    max_batch: int | None = 16,
    max_length: int | None = None,
    dtype: str | None = None,
) -> Program:
    """The program of `model.forward`, with one graph `forward`.

    `example` is a tensor, a tuple of positional arguments or a dict of keywords; sizes of 1 are allowed. With
    `dynamic=False` all sizes are those of the example. `max_batch` and `max_length` bound the named sizes B and S.
    Parameters on the meta device become weights without arrays, which wait for `Weights.bind`.
    `dtype` casts parameters, buffers that are part of the state, and float inputs, and leaves the model as it is.

    Raises NotAModule, ExampleMismatch, DataDependentControlFlow and ExportFailed.
    """
    if not isinstance(model, torch.nn.Module):
        raise NotAModule(f"{type(model).__name__} is not an nn.Module", fix="pass the model itself")
    if example is None:
        raise ExampleMismatch(f"an example input is needed for {type(model).__name__}", fix="pass example=")
    original = bind_example(model, example)
    if dtype is not None:
        model, original = in_dtype(model, original, dtype)
    traced = dynamic_example(original) if dynamic else original
    with stand_ins(model) as unloaded:
        exported = export(model, traced, original)
        translation, meta = _translated(exported, traced, unloaded)
    _check_sizes(translation, traced)
    program = translation.program(_program_name(model), {"B": max_batch, "S": max_length})
    program.meta |= meta
    return program


def export(model: torch.nn.Module, example: Example, original: Example) -> ExportedProgram:
    """`torch.export.export`, with failures explained."""
    try:
        with _evaluating(model), torch.no_grad():
            return torch.export.export(
                model, example.args, example.kwargs, dynamic_shapes=example.dynamic_shapes(), strict=False
            )
    except Exception as error:
        raise _own(error) or explain(error, model, example, original) from error


def _own(error: BaseException | None) -> IRXError | None:
    """The error that code of ours raised while the model ran, if that is what stopped it."""
    while error is not None and not isinstance(error, IRXError):
        error = error.__cause__ or error.__context__
    return error


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode, without torch's fused encoder layers, which hide what they compute."""
    training = [module for module in model.modules() if module.training]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    for module in training:
        module.training = False
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module in training:
            module.training = True


def _translated(exported: ExportedProgram, example: Example, unloaded: Unloaded) -> tuple[Translation, dict[str, Any]]:
    try:
        return _translate(exported, example, unloaded)
    except NotFunctional:
        return _translate(exported.run_decompositions({}), example, unloaded)


def _translate(exported: ExportedProgram, example: Example, unloaded: Unloaded) -> tuple[Translation, dict[str, Any]]:
    signature = exported.graph_signature
    weights, constants, inputs = _classified(exported, unloaded)
    results = [spec.arg for spec in signature.output_specs if spec.kind is OutputKind.USER_OUTPUT]
    spec = exported.call_spec.out_spec
    assert spec is not None
    tree, names = output_tree(spec, [isinstance(arg, TensorArgument) for arg in results])
    translation = translate(
        exported.graph_module,
        weights=weights,
        constants=constants,
        axes=_axis_names(inputs),
        outputs=names,
    )
    if translation.mutated:
        translation.notes.append(f"forward writes into {', '.join(translation.mutated)}; the contents are outputs")
    return translation, {
        "inputs": _input_meta(translation),
        "output": describe(tree),
        "arguments": _fixed(example),
        "parameters": _positional(example),
    }


def _classified(
    exported: ExportedProgram, unloaded: Unloaded
) -> tuple[dict[str, tuple[str, torch.Tensor]], dict[str, Any], list[str]]:
    """Placeholders as weights (by name in the model), constants and tensor inputs."""
    weights: dict[str, tuple[str, torch.Tensor]] = {}
    constants: dict[str, Any] = {}
    inputs: list[str] = []
    for spec in exported.graph_signature.input_specs:
        name = spec.arg.name
        if spec.kind is InputKind.USER_INPUT:
            if isinstance(spec.arg, ConstantArgument):
                constants[name] = spec.arg.value
            else:
                inputs.append(name)
            continue
        tensor = exported.state_dict.get(spec.target or "", exported.constants.get(spec.target or ""))
        if isinstance(tensor, torch.Tensor) and spec.kind is InputKind.CONSTANT_TENSOR and tensor.dim() == 0:
            constants[name] = tensor
        elif isinstance(tensor, torch.Tensor):
            weights[name] = (str(spec.target), unloaded.get(tensor.untyped_storage()._cdata, tensor))
        else:
            constants[name] = tensor
    return weights, constants, inputs


def _axis_names(inputs: list[str]) -> dict[str, Mapping[int, str]]:
    """Names for the axes of inputs with a known role, and of the first input.

    In an encoder-decoder model S is the decoder's length, E the encoder's.
    """
    names: dict[str, Mapping[int, str]] = {}
    for name in inputs:
        encoder = "decoder_input_ids" in inputs and not name.startswith("decoder")
        if name in _ROLES or name == inputs[0]:
            names[name] = {0: "B", 1: "E" if encoder else "S"}
    return names


def _input_meta(translation: Translation) -> list[dict[str, str]]:
    """Name and role of every input, in the order of `forward`."""
    names = [value.name for value in translation.graph.inputs]
    return [{"name": name, "role": _ROLES.get(name, "tensor")} for name in names]


def _fixed(example: Example) -> dict[str, Any]:
    """Arguments that were given as plain numbers, words and truth values, and are part of the program now."""
    plain = (bool, int, float, str, type(None))
    return {name: value for name, value in example.named().items() if isinstance(value, plain)}


def _positional(example: Example) -> list[str]:
    """The names of the arguments that `forward` takes by position, captured or not."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, parameter in example.signature.parameters.items() if parameter.kind in positional]


def _check_sizes(translation: Translation, example: Example) -> None:
    """An axis that was enlarged from 1 and turned out fixed would make the user's own example impossible."""
    by_name = {value.name: value for value in translation.graph.inputs}
    for name, axis in example.enlarged:
        value = by_name.get(name)
        if value is not None and not isinstance(value.shape[axis], SymDim):
            raise ExampleMismatch(
                f"the model fixes axis {axis} of {name}, which was enlarged from size 1: {shapes_of(example)}",
                fix="give an example with a size of 2 or more there, or compile with dynamic=False",
            )
    for name, value in example.named().items():
        made = by_name.get(name)
        if made is None or not isinstance(value, torch.Tensor) or example.axes is None:
            continue
        fixed = [axis for axis in (example.axes.get(name) or {}) if isinstance(made.shape[axis], int)]
        if fixed:
            translation.notes.append(f"the model fixes axis {fixed} of {name} at the example's size")


def in_dtype(model: torch.nn.Module, example: Example, dtype: str) -> tuple[torch.nn.Module, Example]:
    """A copy of the model and the example in another float dtype; unsaved buffers, as rotary tables, stay."""
    wanted = torch_dtype(dtype)
    memo: dict[int, Any] = {}
    saved = set(model.state_dict())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and name in saved:
            cast = tensor.detach().to(wanted)
            memo[id(tensor)] = torch.nn.Parameter(cast, False) if isinstance(tensor, torch.nn.Parameter) else cast
        else:
            memo[id(tensor)] = tensor

    def fit(value: Any) -> Any:
        return value.to(wanted) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    fitted = {name: pytree.tree_map(fit, value) for name, value in example.named().items()}
    return copy.deepcopy(model, memo), example.rebuilt(fitted)


def _program_name(model: torch.nn.Module) -> str:
    return type(model).__name__
