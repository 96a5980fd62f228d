"""A transformers model, or the folder of one, as a program.

The adapter turns attention and experts into single operations. A model whose masks it cannot say, or that does not use
transformers' interfaces, is captured with its own attention instead, which normalisation then has to recognise; the
program's notes say so.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from irx.errors import ExampleMismatch, MissingExtra, ModelNotFound
from irx.frontends import torch_export
from irx.frontends.hf.adapter import adapted, can_adapt
from irx.frontends.hf.examples import derive_example
from irx.frontends.hf.masks import UnknownMask
from irx.frontends.hf.metadata import describe_model, longest
from irx.frontends.torch_export.capture import in_dtype
from irx.frontends.torch_export.example import ExampleLike, bind_example
from irx.ir.program import Program


def is_model(model: Any) -> bool:
    """True for a transformers model; does not import transformers."""
    return any(kind.__module__ == "transformers.modeling_utils" for kind in type(model).__mro__)


def capture(
    model: Any,
    example: ExampleLike | None = None,
    *,
    dynamic: bool = True,
    max_batch: int | None = 16,
    max_length: int | None = None,
    dtype: str | None = None,
) -> Program:
    """The program of a transformers model, or of the folder of one (a path; nothing is downloaded).

    Arguments are those of `irx.frontends.torch_export.capture`; the example is derived where none is given. The model
    is captured without a cache. Raises UnsupportedAttention where a module hands attention a keyword of unknown
    meaning, ModelNotFound for a folder without a model, and what `torch_export.capture` raises.
    """
    if isinstance(model, (str, Path)):
        model = load_folder(Path(model))
    keywords = _keywords(model, derive_example(model) if example is None else example)
    if dtype is not None:  # before anything is found out about the modules: the copy has others
        model, fitted = in_dtype(model, bind_example(model, keywords), dtype)
        keywords = fitted.named()
    options: dict[str, Any] = {"dynamic": dynamic, "max_batch": max_batch}
    options["max_length"] = longest(model) if max_length is None else max_length
    program, sites, note = _captured(model, keywords, options)
    program.meta |= describe_model(model, sites)
    program.meta["max_length"] = options["max_length"]
    program.meta["notes"] += [note] if note else []
    return program


def _captured(model: Any, keywords: dict[str, Any], options: dict[str, Any]) -> tuple[Program, list[Any], str]:
    if not can_adapt(model):
        program = torch_export.capture(model, keywords, **options)
        return program, [], "the model does not use transformers' attention interface"
    if keywords.get("position_ids") is not None:
        with adapted(model, attention=False):
            return torch_export.capture(model, keywords, **options), [], "positions are inputs, so masks depend on them"
    try:
        with adapted(model) as session:
            return torch_export.capture(model, keywords, **options), session.sites, ""
    except UnknownMask as error:
        with adapted(model, attention=False):
            return torch_export.capture(model, keywords, **options), [], f"captured with its own attention: {error}"


def _keywords(model: Any, example: ExampleLike) -> dict[str, Any]:
    """The example by name, and no cache."""
    keywords = bind_example(model, example).named()
    if keywords.get("use_cache"):
        raise ExampleMismatch("the example asks for a cache", fix="leave use_cache out: IRX inserts a cache of its own")
    if "use_cache" in inspect.signature(model.forward).parameters:
        keywords["use_cache"] = False
    return keywords


def load_folder(path: Path) -> Any:
    """The model in a folder of `config.json` and safetensors, as the class its configuration names, in evaluation mode.

    Raises ModelNotFound where there is none, MissingExtra without transformers.
    """
    if not (path / "config.json").is_file():
        raise ModelNotFound(f"{path} holds no config.json", fix="pass a folder saved by save_pretrained")
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "hf", needed_for="model folders") from error
    config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    name = next(iter(config.architectures or []), None)
    kind = getattr(transformers, name or "", transformers.AutoModel)
    try:
        return kind.from_pretrained(path, local_files_only=True, dtype="auto").eval()
    except OSError as error:
        raise ModelNotFound(f"{path} cannot be loaded: {error}") from error
