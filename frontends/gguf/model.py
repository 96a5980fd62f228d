"""The model of a GGUF file: the transformers class without weights, and the file's own weights beside it.

The hand-over to capture:

- `module` is a transformers `...ForCausalLM` in eval mode. Its parameters are float32 on the meta device, so building
  and exporting a model of any size takes no memory; its buffers (rotary tables, embedding scales) are real.
- `weights` has one `StoredWeight` for every name in `module.state_dict()`. Its `dtype` is how the file stores it, and
  need not be float32: bind a packed weight as a `Weight` of that dtype and logical shape, loaded by `load`, followed by
  `irx.dequantize`; a plain one that is not f32 is followed by a cast.
- Tied parameters appear under each of their names with the same object, `lm_head.weight is model.embed_tokens.weight`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irx.errors import MissingExtra, UnsupportedFile
from irx.frontends.gguf.architectures import configure, stored_weights
from irx.frontends.gguf.header import damaged
from irx.frontends.gguf.reader import GgufFile
from irx.frontends.gguf.weights import StoredWeight

if TYPE_CHECKING:
    from torch import nn

_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class GgufModel:
    """A model as read from a file; see the module's docstring for what capture may rely on."""

    file: GgufFile
    module: nn.Module
    weights: Mapping[str, StoredWeight]


def load(path: str | Path) -> GgufModel:
    """Read a GGUF file: its model with parameters on the meta device, and its weights, none of them loaded.

    Raises ModelNotFound, DamagedFile, UnsupportedFile, UnknownArchitecture, and MissingExtra without transformers.
    """
    file = GgufFile.open(path)
    module = build_model(file)
    return GgufModel(file, module, bind_weights(file, module))


def build_model(file: GgufFile, dtype: str = "f32") -> nn.Module:
    """The transformers model of the file's metadata: eval, parameters on the meta device, buffers real.

    It computes in `dtype`, f32 or bf16.

    Raises DamagedFile when the metadata contradicts itself, MissingExtra without transformers.
    """
    import torch

    transformers = _transformers()
    from huggingface_hub.errors import StrictDataclassError

    model_type, fields = configure(file)
    try:
        config = transformers.AutoConfig.for_model(model_type, **fields)
        with _parameters_on_meta():
            floats = torch.bfloat16 if dtype == "bf16" else torch.float32
            module: nn.Module = transformers.AutoModelForCausalLM.from_config(config, dtype=floats)
    except (ValueError, TypeError, StrictDataclassError) as error:
        # The checks of the configuration's own class: sizes that do not divide, values of the wrong type.
        raise damaged(f"the metadata contradicts itself: {_last_line(error)}", file.path, "metadata") from error
    _move_small_parameters(module)
    _scale_frequencies(file, module)
    return module.eval().requires_grad_(False)


def bind_weights(file: GgufFile, module: nn.Module) -> dict[str, StoredWeight]:
    """The file's weight for every name in `module.state_dict()`, in that order; tied names share one object.

    Raises DamagedFile for a weight that is missing or of another shape, UnsupportedFile for one without a parameter.
    """
    stored = stored_weights(file)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    surplus = sorted(set(stored) - set(parameters))
    if surplus:
        raise UnsupportedFile(f"the model has no place for {surplus[0]}", where=f"{file.path} ({file.architecture})")
    shared = {id(parameter): stored[name] for name, parameter in parameters.items() if name in stored}
    weights = {}
    for name, parameter in parameters.items():
        weight = stored.get(name) or shared.get(id(parameter))
        if weight is None:
            raise damaged(f"there is no tensor for the parameter {name}", file.path, "table of tensors")
        if weight.shape != tuple(parameter.shape):
            raise damaged(
                f"{name} has the shape {list(weight.shape)}, by the metadata {list(parameter.shape)}",
                file.path,
                f"tensor {weight.tensor.name!r}",
            )
        weights[name] = weight
    return weights


def _last_line(error: Exception) -> str:
    """What a configuration's check says, without the heading that validators put before it."""
    return str(error).strip().splitlines()[-1].strip()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "hf", needed_for="GGUF files") from error
    return transformers


def _parameters_on_meta() -> Any:
    """A context in which modules are built with parameters on the meta device and buffers where they belong.

    `torch.device("meta")` would take the buffers along, and they cannot be computed afterwards without knowing each
    class. Layers allocate their parameters with `torch.empty` and nothing else does, so that alone is redirected.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class EmptyOnMeta(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if function is torch.empty:
                kwargs["device"] = "meta"
            return function(*args, **kwargs)

    return EmptyOnMeta()


def _move_small_parameters(module: nn.Module) -> None:
    """Parameters that were not allocated by `torch.empty` (the ones of norms) go to the meta device too."""
    from torch import nn

    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if not parameter.is_meta:
                owner.register_parameter(name, nn.Parameter(parameter.to("meta"), requires_grad=False))


def _scale_frequencies(file: GgufFile, module: nn.Module) -> None:
    """Divide the rotary frequencies by the file's factors, one each: how Llama 3.1 scales, which no metadata states."""
    import torch

    factors = file.tensors.get(_FACTORS)
    if factors is None:
        return
    rotary = module.get_submodule("model.rotary_emb")
    if factors.shape != rotary.get_buffer("inv_freq").shape:
        raise damaged(f"{list(factors.shape)} factors for the rotary frequencies", file.path, f"tensor {_FACTORS!r}")
    divisor = torch.from_numpy(factors.values())
    for name in ("inv_freq", "original_inv_freq"):
        rotary.register_buffer(name, rotary.get_buffer(name) / divisor, persistent=False)
