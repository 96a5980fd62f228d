"""What the user asked for: `options` are keyword arguments of `irx.compile`, `mode` one of torch's words.

An option that does not exist, or that has no meaning for a graph that Dynamo captured, is an error before anything is
compiled; so are a target and a pipeline that cannot be read.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from irx import api
from irx.backends import known_backends
from irx.dynamo.notes import say
from irx.errors import UnknownOption, UnsupportedArgument
from irx.passes import passes
from irx.pipeline.pipeline import Pipeline
from irx.target import Target
from irx.tuning import check_effort

_PLACE = "torch.compile(options=...)"
_ELSEWHERE = {
    "data": "quality is measured by irx.compile",
    "budget": "quality is measured by irx.compile",
    "search": "this version has no search",
    "tokenizer": "Dynamo's graphs take tensors",
    "dtype": "convert the model itself, as in model.to(torch.bfloat16)",
    "dynamic": "say it to torch.compile(dynamic=...)",
    "max_batch": "Dynamo decides which sizes vary",
    "context": "passes are not timed here",
    "max_length": "Dynamo decides which sizes vary",
}


@dataclass(frozen=True)
class Settings:
    """`target` None is the device that the model's tensors are on."""

    target: str | None = None
    pipeline: str = "default"
    strict: bool = False
    tune: str = "none"


def read_settings(options: Mapping[str, Any] | None, mode: str | None) -> Settings:
    """The settings of one `torch.compile`. Raises UnknownOption, UnsupportedArgument, and what the parsers of targets
    and pipelines raise."""
    parameters = inspect.signature(api.compile).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    given = dict(options or {})
    for name, value in given.items():
        if name not in defaults:
            raise UnknownOption(name, defaults, where=_PLACE)
        if name in _ELSEWHERE and value != defaults[name]:
            raise UnsupportedArgument(f"{name}={value!r}: {_ELSEWHERE[name]}", where=_PLACE)
    target, tune = given.get("target"), given.get("tune", _effort(mode))
    check_effort(tune)
    settings = Settings(target, given.get("pipeline", Settings.pipeline), given.get("strict", False), tune)
    if target is not None:
        Target.parse(target, known_backends())
    Pipeline.parse(settings.pipeline, passes())
    return settings


def _effort(mode: str | None) -> str:
    """How much tuning the mode asks for."""
    if mode is not None and mode.startswith("max-autotune"):
        return "quick"
    if mode not in (None, "default"):
        say(f"mode={mode!r} means nothing to this backend and is ignored")
    return "none"
